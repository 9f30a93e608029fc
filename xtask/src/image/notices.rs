//! Licence texts of what is linked into programs: most licences ask for theirs to go along.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::crates::Crates;
use super::runtime::Linked;

/// How names of such files begin, in small letters.
const NAMES: [&str; 6] = [
    "license",
    "licence",
    "copying",
    "notice",
    "unlicense",
    "copyright",
];

/// The texts of all that is linked in, each once, below the names of those that it is for.
///
/// # Errors
/// When a text cannot be read.
pub fn collect(crates: &Crates, linked: &[Linked]) -> Result<String> {
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut without = Vec::new();
    for ((name, version), known) in &crates.all {
        // The workspace's own licence is a file of the image.
        if known.checksum.is_none() {
            continue;
        }
        let title = format!("{name} {version} ({})", known.licence);
        let files = files_in(&known.folder)?;
        if files.is_empty() {
            without.push(title.clone());
        }
        for file in files {
            texts.entry(read(&file)?).or_default().insert(title.clone());
        }
    }
    for package in linked {
        let title = format!(
            "{} {} (of {} {})",
            package.name, package.version, package.source, package.source_version
        );
        texts
            .entry(read(&package.copyright)?)
            .or_default()
            .insert(title);
    }
    Ok(page(&texts, &without))
}

fn page(texts: &BTreeMap<String, BTreeSet<String>>, without: &[String]) -> String {
    let rule = "=".repeat(80);
    let mut page = String::from("Licences of what is linked into the programs of this image.\n");
    // By the first name that a text is for, as one looks for it.
    let mut ordered: Vec<_> = texts.iter().map(|(text, titles)| (titles, text)).collect();
    ordered.sort();
    for (titles, text) in ordered {
        page.push_str(&format!("\n{rule}\n"));
        for title in titles {
            page.push_str(&format!("{title}\n"));
        }
        page.push_str(&format!("{rule}\n\n{}\n", text.trim_end()));
    }
    if !without.is_empty() {
        page.push_str(&format!(
            "\n{rule}\nUnder the named licences, without a text of their own:\n"
        ));
        for title in without {
            page.push_str(&format!("{title}\n"));
        }
    }
    page
}

/// Licence texts in the folder of a crate, sorted.
fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = || format!("cannot list {}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().to_lowercase())
            .unwrap_or_default();
        if path.is_file() && NAMES.iter().any(|prefix| name.starts_with(prefix)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    let text = crate::setup::files::read(path)?;
    Ok(String::from_utf8_lossy(&text).replace("\r\n", "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_there_once_with_all_that_it_is_for() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let texts = BTreeMap::from([
            ("Do as you like.\n".to_owned(), set(&["b 1", "c 1"])),
            ("Keep this.\n".to_owned(), set(&["a 1"])),
        ]);
        let page = page(&texts, &["d 1 (MIT)".to_owned()]);
        assert_eq!(page.matches("Do as you like.").count(), 1);
        let at = |text: &str| page.find(text).expect("there");
        assert!(at("a 1") < at("Keep this.") && at("Keep this.") < at("b 1"));
        assert!(at("b 1") < at("c 1") && at("c 1") < at("Do as you like."));
        assert!(at("without a text") < at("d 1 (MIT)"));
    }

    #[test]
    fn licence_files_are_known_by_their_names() {
        let dir = tempfile::tempdir().expect("temporary folder");
        for name in ["LICENSE-MIT", "Copying", "README.md", "NOTICE.txt"] {
            fs::write(dir.path().join(name), name).expect("write");
        }
        let names: Vec<_> = files_in(dir.path())
            .expect("listed")
            .iter()
            .filter_map(|path| path.file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["Copying", "LICENSE-MIT", "NOTICE.txt"]);
    }
}
