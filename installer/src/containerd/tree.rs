//! A main file with all that it imports, in the order in which containerd reads them.

use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use toml::{Table, Value};

use super::ConfigError;
use super::runtime::{CRI_V2, CRI_V3, NAME};

/// How the files of the node are had. All paths are the node's.
pub trait Files {
    /// Why one cannot be had.
    type Error;

    /// The file's text; `None` if it is not there.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, path: &Path) -> Result<Option<String>, Self::Error>;

    /// The files that fit a pattern, sorted.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn fitting(&self, pattern: &str) -> Result<Vec<PathBuf>, Self::Error>;
}

/// One file.
#[derive(Clone, Debug, PartialEq)]
pub struct File {
    /// Its name on the node.
    pub path: PathBuf,
    /// Its text; `None` if it is not there.
    pub text: Option<String>,
    table: Table,
}

/// All files, the main one first. What is read later wins.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// There is always a first one.
    pub files: Vec<File>,
}

/// What a tree could not be had for.
#[derive(Debug, PartialEq, Eq)]
pub enum TreeError<E> {
    /// A file could not be had.
    File(E),
    /// What it says cannot be used.
    Config(ConfigError),
}

impl Tree {
    /// Reads `main` and what it imports.
    ///
    /// # Errors
    /// When a file cannot be had or is not TOML.
    pub fn read<F: Files>(files: &F, main: &Path) -> Result<Self, TreeError<F::Error>> {
        let (mut read, mut seen) = (Vec::new(), BTreeSet::new());
        let mut left = VecDeque::from([main.to_owned()]);
        while let Some(path) = left.pop_front() {
            if !seen.insert(path.clone()) {
                continue;
            }
            let text = files.read(&path).map_err(TreeError::File)?;
            let table = parse(&path, text.as_deref().unwrap_or_default());
            let table = table.map_err(TreeError::Config)?;
            for pattern in imports(&table) {
                let folder = path.parent().unwrap_or(Path::new("/"));
                let pattern = folder.join(pattern).to_string_lossy().into_owned();
                let found = files.fitting(&pattern).map_err(TreeError::File)?;
                left.extend(found);
            }
            read.push(File { path, text, table });
        }
        Ok(Self { files: read })
    }

    /// The first file.
    pub fn main(&self) -> &File {
        &self.files[0]
    }

    /// A setting of a plugin that is a text.
    pub fn setting(&self, plugin: &str, key: &str) -> Option<&str> {
        let mut sections = self
            .files
            .iter()
            .rev()
            .filter_map(|file| at(&file.table, &["plugins", plugin]));
        sections.find_map(|section| section.get(key)?.as_str())
    }

    /// Whether a file at `path` would be imported by the main one.
    ///
    /// # Errors
    /// When a pattern is none.
    pub fn imports(&self, path: &Path) -> Result<bool, ConfigError> {
        let main = self.main();
        let folder = main.path.parent().unwrap_or(Path::new("/"));
        let options = MatchOptions {
            require_literal_separator: true,
            ..MatchOptions::default()
        };
        for pattern in imports(&main.table) {
            let whole = folder.join(pattern);
            let parsed =
                Pattern::new(&whole.to_string_lossy()).map_err(|error| ConfigError::Import {
                    file: main.name(),
                    pattern: pattern.to_owned(),
                    message: error.to_string(),
                })?;
            if parsed.matches_path_with(path, options) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl File {
    /// Its name, for people.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The version that it says.
    pub fn version(&self) -> Option<i64> {
        self.table.get("version")?.as_integer()
    }

    /// It says nothing.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// It has a section of this plugin.
    pub fn has_plugin(&self, plugin: &str) -> bool {
        at(&self.table, &["plugins", plugin]).is_some()
    }

    /// It has a runtime of our name that nothing marks as ours.
    pub fn has_foreign_runtime(&self) -> bool {
        let theirs = super::block::cut(self.text.as_deref().unwrap_or_default());
        let Ok(table) = theirs.parse::<Table>() else {
            return false;
        };
        [CRI_V2, CRI_V3].iter().any(|plugin| {
            at(&table, &["plugins", plugin, "containerd", "runtimes", NAME]).is_some()
        })
    }

    /// The plugin for Kubernetes, if it is switched off here.
    pub fn disabled_cri(&self) -> Option<String> {
        let plugins = self.table.get("disabled_plugins")?.as_array()?;
        let names = plugins.iter().filter_map(Value::as_str);
        let mut cri = names.filter(|name| ["cri", CRI_V2, CRI_V3].contains(name));
        cri.next().map(str::to_owned)
    }
}

fn parse(path: &Path, text: &str) -> Result<Table, ConfigError> {
    text.parse()
        .map_err(|error: toml::de::Error| ConfigError::Syntax {
            file: path.display().to_string(),
            message: error.to_string().trim_end().to_owned(),
        })
}

fn imports(table: &Table) -> impl Iterator<Item = &str> {
    let patterns = table.get("imports").and_then(Value::as_array);
    patterns.into_iter().flatten().filter_map(Value::as_str)
}

fn at<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Table> {
    path.iter()
        .try_fold(table, |table, key| table.get(*key)?.as_table())
}
