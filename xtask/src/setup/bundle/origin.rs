//! Where what is in a bundle comes from, and its licences: some of it may be passed on only with both.
//!
//! `SOURCE` says it to people, `packages.json` to programs; `licences/<package>` is a package's own text and
//! `licences/texts` has the common ones that those refer to.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::tree::Tree;
use super::{COMMON_LICENSES, files};
use crate::setup::apt::Deb;

/// Where Debian keeps every source that it ever had.
const SOURCES: &str = "https://snapshot.debian.org/package";

const PACKAGES: &str = "packages.json";

/// A package that something in a bundle is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Name of the package.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Name of the source package.
    pub source: String,
    /// Its version.
    pub source_version: String,
    /// Where the source is.
    pub source_location: String,
    /// The package's licence text, relative to the bundle.
    pub licence: String,
}

/// The origins of all that is in the bundle at `place`.
///
/// # Errors
/// When the bundle does not tell them.
pub fn read_origins(place: &Path) -> Result<Vec<Origin>> {
    let path = place.join(PACKAGES);
    serde_json::from_slice(&files::read(&path)?)
        .with_context(|| format!("cannot parse {}", path.display()))
}

/// Unpacks Debian's common licence texts, of the package `base-files` in `debs`, below `dir`. Returns their folder.
pub(super) fn unpack_texts(debs: &[Deb], dir: &Path) -> Result<PathBuf> {
    let deb = debs
        .iter()
        .find(|deb| deb.package == "base-files")
        .context("apt brought no base-files")?;
    let root = dir.join("base-files.texts");
    deb.unpack(&root)?;
    Ok(root.join(COMMON_LICENSES.trim_start_matches('/')))
}

/// Writes the origins and licences of the packages called `used` into the bundle at `partial`. Common texts are in
/// `common`.
pub(super) fn write(
    tree: &Tree<'_>,
    used: &BTreeSet<String>,
    common: &Path,
    suite: &str,
    partial: &Path,
) -> Result<()> {
    let licences = partial.join("licences");
    files::make_dir(&licences)?;
    let mut origins = Vec::new();
    let mut texts: BTreeSet<String> = BTreeSet::new();
    for (deb, _) in &tree.packages {
        if !used.contains(&deb.package) {
            continue;
        }
        let text = files::read(&copyright(tree, &deb.package)?)?;
        texts.extend(referred_licences(&String::from_utf8_lossy(&text)));
        files::write(&licences.join(&deb.package), &text)?;
        origins.push(Origin {
            name: deb.package.clone(),
            version: deb.version.clone(),
            source: deb.source.clone(),
            source_version: deb.source_version.clone(),
            source_location: format!("{SOURCES}/{}/{}/", deb.source, deb.source_version),
            licence: format!("licences/{}", deb.package),
        });
    }
    origins.sort_by(|a, b| a.name.cmp(&b.name));
    for name in texts {
        let source = common.join(&name);
        ensure!(
            source.exists(),
            "a copyright file refers to the licence {name}, which base-files does not have"
        );
        files::copy(&source, &licences.join("texts").join(&name))?;
    }
    files::write(&partial.join("SOURCE"), note(suite, &origins).as_bytes())?;
    files::write(
        &partial.join(PACKAGES),
        &serde_json::to_vec_pretty(&origins)?,
    )
}

fn note(suite: &str, origins: &[Origin]) -> String {
    let mut note = format!(
        "Unmodified programs and libraries of Debian {suite}, except for the paths of loader and libraries.\n\
         Their licences are in the folder licences. Their sources, as `apt-get source NAME=VERSION` and:\n\n"
    );
    for origin in origins {
        note.push_str(&format!(
            "{} {}: {}\n",
            origin.name, origin.version, origin.source_location
        ));
    }
    note
}

/// The copyright file of `package`. Packages of one source may share the folder that it is in.
fn copyright(tree: &Tree<'_>, package: &str) -> Result<PathBuf> {
    let docs = Path::new("usr/share/doc");
    let mut name = package.to_owned();
    // A link leads to another package's folder.
    while let Ok(link) = fs::read_link(tree.root(&name)?.join(docs).join(&name)) {
        let next = link.file_name().and_then(|name| name.to_str());
        name = next
            .filter(|next| *next != name)
            .with_context(|| format!("the documentation of {name} is at {}", link.display()))?
            .to_owned();
    }
    let path = tree.root(&name)?.join(docs).join(&name).join("copyright");
    ensure!(
        path.exists(),
        "the package {package} has no copyright file: it may not be passed on without"
    );
    Ok(path)
}

/// Names below `/usr/share/common-licenses` that a copyright file refers to.
fn referred_licences(text: &str) -> BTreeSet<String> {
    text.split(COMMON_LICENSES)
        .skip(1)
        .filter_map(|rest| rest.strip_prefix('/'))
        .map(|rest| {
            rest.chars()
                .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
                .collect::<String>()
        })
        .map(|name| name.trim_end_matches('.').to_owned())
        .filter(|name| !name.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_texts_are_found_in_prose() {
        let text = "see /usr/share/common-licenses/GPL-2. Also '/usr/share/common-licenses/LGPL-2.1'\n\
                    or /usr/share/common-licenses/ itself";
        let names: Vec<String> = referred_licences(text).into_iter().collect();
        assert_eq!(names, ["GPL-2", "LGPL-2.1"]);
    }

    #[test]
    fn the_note_says_where_each_source_is() {
        let origin = Origin {
            name: "criu".to_owned(),
            version: "4.2-1+b1".to_owned(),
            source: "criu".to_owned(),
            source_version: "4.2-1".to_owned(),
            source_location: format!("{SOURCES}/criu/4.2-1/"),
            licence: "licences/criu".to_owned(),
        };
        let note = note("forky", &[origin]);
        assert!(
            note.contains("\ncriu 4.2-1+b1: https://snapshot.debian.org/package/criu/4.2-1/\n"),
            "{note}"
        );
    }
}
