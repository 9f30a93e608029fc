//! containerd's configuration, as far as it names runtimes and the folder of the bundles.
//!
//! What the main file imports counts as if it were in it. Version 2 (containerd 1.6 and later) and version 3
//! (containerd 2) have the runtimes in different places, and each file is read by its own version.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use toml::{Table, Value};

/// Where the configuration is by default.
pub const PATH: &str = "/etc/containerd/config.toml";

/// Where containerd keeps its state by default.
pub const STATE: &str = "/run/containerd";

/// The runtime type of the shim.
pub const RUNTIME: &str = "io.containerd.podmotion.v1";

/// Any annotation of ours.
const ANNOTATION: &str = "komodor.com/podmotion-scaledown-duration";

const CRI_V2: &str = "io.containerd.grpc.v1.cri";
const CRI_V3: &str = "io.containerd.cri.v1.runtime";

/// A configuration cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// A file cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A file is not TOML.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's answer.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// An import is not a pattern of files.
    #[error("{}: imports = {pattern:?} is not valid: {source}", path.display())]
    Import {
        /// The file.
        path: PathBuf,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        #[source]
        source: glob::PatternError,
    },
    /// A version without runtimes of this kind.
    #[error("{}: version = {version} is not valid: expected 2 or 3", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version.
        version: i64,
    },
}

/// A configuration with all that it imports.
#[derive(Debug)]
pub struct Configuration {
    version: i64,
    files: Vec<(PathBuf, Table)>,
}

/// A CRI runtime of our type.
#[derive(Debug, PartialEq, Eq)]
pub struct Handler {
    /// Its name: the handler of a RuntimeClass.
    pub name: String,
    /// The file that has it.
    pub file: PathBuf,
    /// The pods' annotations reach the shim.
    pub annotations: bool,
}

impl Configuration {
    /// Reads `path` and what it imports.
    pub fn read(path: &Path) -> Result<Self, ContainerdError> {
        let mut files = Vec::new();
        let mut seen = BTreeSet::new();
        let mut left = vec![path.to_owned()];
        while let Some(path) = left.pop() {
            if !seen.insert(path.clone()) {
                continue;
            }
            let table = parse(&path)?;
            left.extend(imports(&path, &table)?);
            files.push((path, table));
        }
        let version = files
            .first()
            .map_or(1, |(_, main)| version(main).unwrap_or(1));
        if version != 2 && version != 3 {
            let path = path.to_owned();
            return Err(ContainerdError::Version { path, version });
        }
        Ok(Self { version, files })
    }

    /// Where containerd keeps its state, if it does not keep it where it does by default.
    pub fn state(&self) -> Option<PathBuf> {
        let named = |(_, table): &(PathBuf, Table)| Some(table.get("state")?.as_str()?.into());
        self.files.iter().rev().find_map(named)
    }

    /// The CRI runtimes of our type.
    pub fn handlers(&self) -> Vec<Handler> {
        let mut handlers = Vec::new();
        for (file, table) in &self.files {
            let plugin = cri(version(table).unwrap_or(self.version));
            let runtimes = at(table, &["plugins", plugin, "containerd", "runtimes"]);
            for (name, runtime) in runtimes.into_iter().flatten() {
                let kind = runtime.get("runtime_type").and_then(Value::as_str);
                if kind == Some(RUNTIME) {
                    handlers.push(Handler {
                        name: name.clone(),
                        file: file.clone(),
                        annotations: passes(runtime.get("pod_annotations")),
                    });
                }
            }
        }
        handlers
    }

    /// What to add to have the runtime.
    pub fn example(&self) -> String {
        example(self.version)
    }
}

/// The section that containerd 2 reads, or that of 1.6 and 1.7.
pub fn example(version: i64) -> String {
    format!(
        "[plugins.\"{}\".containerd.runtimes.podmotion]\n\
         runtime_type = \"{RUNTIME}\"\n\
         pod_annotations = [\"komodor.com/*\"]",
        cri(version)
    )
}

fn cri(version: i64) -> &'static str {
    if version == 2 { CRI_V2 } else { CRI_V3 }
}

fn parse(path: &Path) -> Result<Table, ContainerdError> {
    let text = fs::read_to_string(path).map_err(|source| ContainerdError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| ContainerdError::Parse {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// Patterns are relative to the file's folder. One that fits nothing imports nothing.
fn imports(path: &Path, table: &Table) -> Result<Vec<PathBuf>, ContainerdError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let patterns = table.get("imports").and_then(Value::as_array);
    let mut found = Vec::new();
    for pattern in patterns.into_iter().flatten().filter_map(Value::as_str) {
        let whole = folder.join(pattern);
        let paths =
            glob::glob(&whole.to_string_lossy()).map_err(|source| ContainerdError::Import {
                path: path.to_owned(),
                pattern: pattern.to_owned(),
                source,
            })?;
        // What cannot be looked at is no file that containerd could read.
        found.extend(paths.flatten());
    }
    Ok(found)
}

fn version(table: &Table) -> Option<i64> {
    table.get("version")?.as_integer()
}

fn at<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Table> {
    path.iter()
        .try_fold(table, |table, key| table.get(*key)?.as_table())
}

/// Whether a list of patterns, as containerd reads them, lets our annotations pass.
fn passes(patterns: Option<&Value>) -> bool {
    let options = MatchOptions {
        require_literal_separator: true,
        ..MatchOptions::default()
    };
    let fits = |pattern: &str| {
        Pattern::new(pattern).is_ok_and(|pattern| pattern.matches_with(ANNOTATION, options))
    };
    let patterns = patterns.and_then(Value::as_array);
    patterns
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .any(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn section(plugin: &str, name: &str, annotations: &str) -> String {
        format!(
            "[plugins.\"{plugin}\".containerd.runtimes.{name}]\nruntime_type = \"{RUNTIME}\"\n\
             pod_annotations = [{annotations}]\n"
        )
    }

    #[test]
    fn the_example_is_what_is_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        for version in [2, 3] {
            let text = format!("version = {version}\n{}\n", example(version));
            let path = write(dir.path(), "config.toml", &text);
            let handlers = Configuration::read(&path).unwrap().handlers();
            assert!(handlers.iter().all(|one| one.annotations) && handlers.len() == 1);
        }
    }

    #[test]
    fn each_version_has_its_own_place() {
        let dir = tempfile::tempdir().unwrap();
        let names = |version: i64, plugin: &str| {
            let text = format!(
                "version = {version}\n{}",
                section(plugin, "podmotion", r#""komodor.com/*""#)
            );
            let path = write(dir.path(), "config.toml", &text);
            Configuration::read(&path).unwrap().handlers()
        };
        let file = dir.path().join("config.toml");
        let expected = [Handler {
            name: "podmotion".into(),
            file,
            annotations: true,
        }];
        assert_eq!(names(2, CRI_V2), expected);
        assert_eq!(names(3, CRI_V3), expected);
        assert!(names(2, CRI_V3).is_empty());
        assert!(names(3, CRI_V2).is_empty());
    }

    #[test]
    fn imports_count_and_state_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let main = "version = 3\nimports = [\"conf.d/*.toml\", \"/nowhere/*.toml\"]\n";
        let path = write(dir.path(), "config.toml", main);
        write(
            dir.path(),
            "conf.d/podmotion.toml",
            &section(CRI_V3, "sleepy", ""),
        );
        write(dir.path(), "conf.d/state.toml", "state = \"/run/other\"\n");
        write(dir.path(), "conf.d/unread.txt", "not TOML");
        let read = Configuration::read(&path).unwrap();
        assert_eq!(read.state(), Some("/run/other".into()));
        let handlers = read.handlers();
        assert_eq!(handlers.len(), 1);
        assert_eq!(handlers[0].name, "sleepy");
        assert!(!handlers[0].annotations);
    }

    #[test]
    fn a_version_without_runtimes_and_a_broken_import_are_errors_with_the_files_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), "config.toml", "root = \"/x\"\n");
        let error = Configuration::read(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("config.toml: version = 1 is not valid: expected 2 or 3"),
            "{error}"
        );
        write(
            dir.path(),
            "config.toml",
            "version = 3\nimports = [\"*.conf\"]\n",
        );
        write(dir.path(), "broken.conf", "no = ");
        let error = Configuration::read(&path).unwrap_err().to_string();
        assert!(error.contains("broken.conf"), "{error}");
    }

    #[test]
    fn annotations_pass_as_containerd_matches_them() {
        let list = |text: &str| toml::from_str::<Table>(&format!("a = [{text}]")).unwrap();
        for (text, expected) in [
            (r#""komodor.com/*""#, true),
            (r#""x", "komodor.com/podmotion-*""#, true),
            (r#""*/*""#, true),
            (r#""*""#, false),
            (r#""komodor.com/other""#, false),
            ("", false),
        ] {
            assert_eq!(passes(list(text).get("a")), expected, "{text}");
        }
        assert!(!passes(None));
    }
}
