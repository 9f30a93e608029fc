//! Programs of a Debian suite in a private folder with their own libraries and loader, so that they run on any machine.
//!
//! The loader's path in a program must be absolute, the library path is forced (`DT_RPATH`, which wins over the environment) and
//! absolute as well: a bundle works only where it was made for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

use super::apt::Deb;
use super::{Cache, Item, Work, files};
use crate::{elf, process};

/// Counts up whenever bundles are made in another way.
const RECIPE: u32 = 1;

/// Where Debian and Ubuntu keep the texts that packages' own copyright files refer to.
const COMMON_LICENSES: &str = "/usr/share/common-licenses";

/// What to take from which packages.
pub struct Bundle {
    pub name: &'static str,
    pub why: &'static str,
    /// Folder in the cache.
    pub place: &'static str,
    pub suite: &'static str,
    /// The first one's version is the bundle's.
    pub packages: &'static [&'static str],
    /// Programs: path in its package, path in the bundle. A path ending in `/` takes the folder's programs.
    pub programs: &'static [(&'static str, &'static str)],
    /// Folders of data: path in its package, path in the bundle.
    pub data: &'static [(&'static str, &'static str)],
    pub links: &'static [(&'static str, &'static str)],
    /// Program in the bundle, its arguments and what its answer must contain.
    pub trial: (&'static str, &'static [&'static str], &'static str),
}

impl Item for Bundle {
    fn name(&self) -> &str {
        self.name
    }

    fn why(&self) -> &str {
        self.why
    }

    fn needs(&self) -> &[&str] {
        &["packages"]
    }

    fn place(&self) -> Option<&str> {
        Some(self.place)
    }

    fn links(&self) -> &[(&str, &str)] {
        self.links
    }

    fn recipe(&self, _cache: &Cache) -> Result<String> {
        Ok(format!(
            "{RECIPE} {} {:?} {:?} {:?} {:?}",
            self.suite, self.packages, self.programs, self.data, self.trial
        ))
    }

    fn make(&self, work: &Work<'_>, partial: &Path) -> Result<String> {
        work.ui
            .step(&format!("fetching from Debian {}", self.suite));
        let debs = work.apt.suite(self.suite)?.fetch(self.packages)?;
        work.ui.step(&format!("unpacking {} packages", debs.len()));
        let unpacked = files::with_suffix(partial, ".unpacked");
        files::remove(&unpacked)?;
        let tree = Tree::unpack(&debs, &unpacked)?;
        work.ui.step("collecting programs and libraries");
        let target = work.cache.path(self.place);
        self.collect(&tree, partial, &target)?;
        write_sources(&tree, partial, work.apt.mirror()?)?;
        files::remove(&unpacked)?;
        debs.iter()
            .find(|deb| Some(&deb.package.as_str()) == self.packages.first())
            .map(|deb| deb.version.clone())
            .context("apt brought everything but the package itself")
    }

    fn check(&self, place: &Path) -> Result<()> {
        let (program, args, expected) = self.trial;
        // Network plugins answer to this variable, everything else to its arguments.
        let mut trial = process::command(place.join(program));
        trial.args(args).env("CNI_COMMAND", "VERSION");
        // The answer counts, not the exit status: some fail after telling their version.
        let said = process::answer(&mut trial)?;
        ensure!(
            said.contains(expected),
            "{} should say {expected:?} and says: {said}",
            process::describe(&trial)
        );
        Ok(())
    }
}

impl Bundle {
    fn collect(&self, tree: &Tree, partial: &Path, target: &Path) -> Result<()> {
        let mut programs = Vec::new();
        for (from, to) in self.programs {
            for (source, name) in tree.programs(from, to)? {
                let path = partial.join(name);
                files::copy(&source, &path)?;
                programs.push(path);
            }
        }
        for (from, to) in self.data {
            tree.copy_dir(from, &partial.join(to))?;
        }
        let lib = partial.join("lib");
        let mut objects = programs.clone();
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        while let Some(object) = objects.pop() {
            for name in needed(&object)? {
                if wanted.insert(name.clone()) {
                    let copy = lib.join(&name);
                    files::copy(tree.library(&name)?, &copy)?;
                    objects.push(copy);
                }
            }
        }
        let lib_target = target.join("lib");
        for program in &programs {
            let Some(loader) = elf::interpreter(program)? else {
                continue;
            };
            let name = Path::new(&loader)
                .file_name()
                .and_then(|name| name.to_str())
                .with_context(|| format!("{} has the loader {loader}", program.display()))?;
            if wanted.insert(name.to_owned()) {
                files::copy(tree.library(name)?, &lib.join(name))?;
            }
            patchelf(
                program,
                &["--set-interpreter", &text(&lib_target.join(name))?],
            )?;
            patchelf(
                program,
                &["--force-rpath", "--set-rpath", &text(&lib_target)?],
            )?;
        }
        for name in wanted.iter().filter(|name| !is_libc(name)) {
            let path = lib.join(name);
            patchelf(
                &path,
                &["--force-rpath", "--set-rpath", &text(&lib_target)?],
            )?;
        }
        Ok(())
    }
}

/// Unpacked packages, each in a folder of its own: merged and unmerged `/usr` do not mix in one.
struct Tree<'a> {
    packages: Vec<(&'a Deb, PathBuf)>,
    libraries: BTreeMap<String, PathBuf>,
}

impl<'a> Tree<'a> {
    fn unpack(debs: &'a [Deb], dir: &Path) -> Result<Self> {
        let mut tree = Self {
            packages: Vec::new(),
            libraries: BTreeMap::new(),
        };
        for deb in debs {
            let root = dir.join(&deb.package);
            deb.unpack(&root)?;
            for entry in WalkDir::new(&root) {
                let entry = entry.with_context(|| format!("cannot list {}", root.display()))?;
                let name = entry.file_name().to_string_lossy();
                if name.contains(".so") && !entry.file_type().is_dir() {
                    tree.libraries
                        .entry(name.into_owned())
                        .or_insert_with(|| entry.path().to_owned());
                }
            }
            tree.packages.push((deb, root));
        }
        Ok(tree)
    }

    fn find(&self, path: &str) -> Result<PathBuf> {
        self.packages
            .iter()
            .map(|(_, root)| root.join(path))
            .find(|candidate| candidate.exists())
            .with_context(|| format!("no package has {path}"))
    }

    fn programs(&self, from: &str, to: &str) -> Result<Vec<(PathBuf, PathBuf)>> {
        let source = self.find(from)?;
        if !from.ends_with('/') {
            return Ok(vec![(source, PathBuf::from(to))]);
        }
        let mut found = Vec::new();
        for entry in WalkDir::new(&source).min_depth(1).max_depth(1) {
            let entry = entry.with_context(|| format!("cannot list {}", source.display()))?;
            if entry.file_type().is_file() {
                found.push((
                    entry.path().to_owned(),
                    Path::new(to).join(entry.file_name()),
                ));
            }
        }
        Ok(found)
    }

    /// Copies the folder `from` of every package that has it into `to`.
    fn copy_dir(&self, from: &str, to: &Path) -> Result<()> {
        files::make_dir(to)?;
        let sources: Vec<PathBuf> = self
            .packages
            .iter()
            .map(|(_, root)| root.join(from))
            .filter(|dir| dir.is_dir())
            .collect();
        ensure!(!sources.is_empty(), "no package has {from}");
        for source in sources {
            process::output(
                process::command("cp")
                    .arg("-a")
                    .arg(source.join("."))
                    .arg(to),
            )?;
        }
        Ok(())
    }

    fn library(&self, name: &str) -> Result<&Path> {
        self.libraries
            .get(name)
            .map(PathBuf::as_path)
            .with_context(|| format!("no package has the library {name}"))
    }
}

/// Says where everything comes from, with the licence texts: some of it may be passed on only like that.
fn write_sources(tree: &Tree<'_>, partial: &Path, mirror: &str) -> Result<()> {
    let licences = partial.join("licences");
    let mut note = format!(
        "Unmodified programs and libraries of Debian, except for the paths of loader and libraries.\n\
         Their sources: {mirror}, `apt-get source NAME=VERSION`.\n\n"
    );
    let mut texts: BTreeSet<String> = BTreeSet::new();
    for (deb, root) in &tree.packages {
        note.push_str(&format!(
            "{} {} (source {})\n",
            deb.package, deb.version, deb.source
        ));
        let copyright = root
            .join("usr/share/doc")
            .join(&deb.package)
            .join("copyright");
        if !copyright.exists() {
            continue;
        }
        let text = files::read(&copyright)?;
        let text = String::from_utf8_lossy(&text);
        texts.extend(referred_licences(&text));
        files::make_dir(&licences)?;
        files::write(&licences.join(&deb.package), text.as_bytes())?;
    }
    for name in texts {
        let source = Path::new(COMMON_LICENSES).join(&name);
        if source.exists() {
            files::copy(&source, &licences.join("texts").join(&name))?;
        }
    }
    files::write(&partial.join("SOURCE"), note.as_bytes())
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

/// Libraries that `object` names; none for a static program.
fn needed(object: &Path) -> Result<Vec<String>> {
    if elf::interpreter(object)?.is_none() && !is_library(object) {
        return Ok(Vec::new());
    }
    let names = process::output(
        process::command("patchelf")
            .arg("--print-needed")
            .arg(object),
    )?;
    Ok(names.lines().map(str::to_owned).collect())
}

fn is_library(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.to_string_lossy().contains(".so"))
}

/// The C library and the loader find each other without a path, and a patched loader crashes.
fn is_libc(name: &str) -> bool {
    name.starts_with("ld-") || name.starts_with("libc.so")
}

fn patchelf(file: &Path, args: &[&str]) -> Result<()> {
    process::output(process::command("patchelf").args(args).arg(file)).map(drop)
}

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .with_context(|| format!("{} is not UTF-8", path.display()))
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
    fn loader_and_c_library_stay_unpatched() {
        assert!(is_libc("ld-linux-x86-64.so.2"));
        assert!(is_libc("libc.so.6"));
        assert!(!is_libc("libcap.so.2"));
    }
}
