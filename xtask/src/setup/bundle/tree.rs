//! Unpacked packages, and who has what in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

use super::files;
use crate::process;
use crate::setup::apt::Deb;

/// Unpacked packages, each in a folder of its own: merged and unmerged `/usr` do not mix in one.
pub(super) struct Tree<'a> {
    pub(super) packages: Vec<(&'a Deb, PathBuf)>,
    libraries: BTreeMap<String, PathBuf>,
}

impl<'a> Tree<'a> {
    pub(super) fn unpack(debs: &'a [Deb], dir: &Path) -> Result<Self> {
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

    /// Name of the package that the unpacked file `path` is from.
    pub(super) fn owner(&self, path: &Path) -> Result<String> {
        self.packages
            .iter()
            .find(|(_, root)| path.starts_with(root))
            .map(|(deb, _)| deb.package.clone())
            .with_context(|| format!("{} is of no package", path.display()))
    }

    /// Where the package called `name` was unpacked.
    pub(super) fn root(&self, name: &str) -> Result<&Path> {
        self.packages
            .iter()
            .find(|(deb, _)| deb.package == name)
            .map(|(_, root)| root.as_path())
            .with_context(|| format!("there is no package {name}"))
    }

    /// (unpacked file, path in the bundle) of the programs at `from`.
    pub(super) fn programs(&self, from: &str, to: &str) -> Result<Vec<(PathBuf, PathBuf)>> {
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

    /// Copies the folder `from` of every package that has it into `to`. Returns the names of these packages.
    pub(super) fn copy_dir(&self, from: &str, to: &Path) -> Result<Vec<String>> {
        files::make_dir(to)?;
        let mut owners = Vec::new();
        for (deb, root) in &self.packages {
            let source = root.join(from);
            if source.is_dir() {
                process::output(
                    process::command("cp")
                        .arg("-a")
                        .arg(source.join("."))
                        .arg(to),
                )?;
                owners.push(deb.package.clone());
            }
        }
        ensure!(!owners.is_empty(), "no package has {from}");
        Ok(owners)
    }

    /// The library called `name`.
    pub(super) fn library(&self, name: &str) -> Result<&Path> {
        self.libraries
            .get(name)
            .map(PathBuf::as_path)
            .with_context(|| format!("no package has the library {name}"))
    }
}
