//! What was changed on the node, `/opt/podmotion/installed.json`. It is written before anything else is
//! changed, so that whatever happens is known by the next run and can be taken back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files::{self, FileError};

/// Where it is on the node.
pub const PATH: &str = "/opt/podmotion/installed.json";

/// Of this layout. Another one is refused.
const FORMAT: u32 = 1;

/// The record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not what this program writes.
    #[error("{} is not a record of an installation: {source}", path.display())]
    Parse {
        /// The record.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Of another release of this program.
    #[error("{} has format {found}, expected {FORMAT}: use the installer that has written it", path.display())]
    Format {
        /// The record.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// A file of the node that is not ours alone, or was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Its name on the node.
    pub path: PathBuf,
    /// Its text before the first change; none if it was not there.
    pub original: Option<String>,
    /// Its text after the last one.
    pub written: String,
}

/// Everything there is to take back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    format: u32,
    /// The installer's version.
    pub version: String,
    /// Directories that were not there.
    pub directories: BTreeSet<PathBuf>,
    /// Links of ours among the programs of others.
    pub links: BTreeSet<PathBuf>,
    /// Files, in the order in which they were first changed.
    pub files: Vec<Changed>,
    /// The texts of containerd's files that it last ran with, while it has not been seen to run with what was
    /// written since: if it does not answer, that is why.
    pub unproven: Vec<Before>,
    /// The unit of systemd's that runs containerd, where this program restarts it.
    pub unit: Option<String>,
}

/// A file as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Its name on the node.
    pub path: PathBuf,
    /// Its text; none if it was not there.
    pub text: Option<String>,
}

impl Record {
    /// Nothing was changed.
    pub fn new() -> Self {
        Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            directories: BTreeSet::new(),
            links: BTreeSet::new(),
            files: Vec::new(),
            unproven: Vec::new(),
            unit: None,
        }
    }

    /// Reads it; `None` if nothing is installed.
    ///
    /// # Errors
    /// When there is one that cannot be used.
    pub fn read(path: &Path) -> Result<Option<Self>, RecordError> {
        let Some(text) = files::read(path)? else {
            return Ok(None);
        };
        let record: Self = serde_json::from_str(&text).map_err(|source| RecordError::Parse {
            path: path.to_owned(),
            source,
        })?;
        if record.format != FORMAT {
            return Err(RecordError::Format {
                path: path.to_owned(),
                found: record.format,
            });
        }
        Ok(Some(record))
    }

    /// Writes it, in one step.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&self, path: &Path) -> Result<(), RecordError> {
        let text = serde_json::to_string_pretty(self).map_err(|source| RecordError::Parse {
            path: path.to_owned(),
            source,
        })?;
        Ok(files::write(path, &format!("{text}\n"), 0o600)?)
    }

    /// Notes that the file `path` with the text `now` will be given the text `next`. What others have made
    /// of it since it was last written is what it will be given back, with ours cut out by `without_ours`.
    pub fn change(
        &mut self,
        path: &Path,
        now: Option<String>,
        next: String,
        without_ours: impl FnOnce(&str) -> String,
    ) {
        match self.files.iter_mut().find(|one| one.path == path) {
            None => self.files.push(Changed {
                path: path.to_owned(),
                original: now,
                written: next,
            }),
            Some(known) => {
                let as_known = now.as_ref() == Some(&known.written) || now == known.original;
                if !as_known {
                    known.original = now.as_deref().map(without_ours);
                }
                known.written = next;
            }
        }
    }

    /// Notes what containerd last ran with, before `path` with the text `now` is changed.
    pub fn doubt(&mut self, path: &Path, now: Option<String>) {
        if !self.unproven.iter().any(|one| one.path == path) {
            self.unproven.push(Before {
                path: path.to_owned(),
                text: now,
            });
        }
    }

    /// Forgets what containerd does not run with. Returns the files as they are to be again, in the order in
    /// which that is to be done.
    pub fn take_back(&mut self) -> Vec<Before> {
        let mut before = std::mem::take(&mut self.unproven);
        before.reverse();
        for Before { path, text } in &before {
            match text {
                Some(text) => {
                    let written = self.files.iter_mut().find(|one| one.path == *path);
                    if let Some(one) = written {
                        one.written.clone_from(text);
                    }
                }
                None => self.files.retain(|one| one.path != *path),
            }
        }
        self.files
            .retain(|one| one.original.as_ref() != Some(&one.written));
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("installed.json");
        assert_eq!(Record::read(&path).unwrap(), None);
        let mut record = Record::new();
        record.directories.insert("/etc/podmotion".into());
        record.change(
            Path::new("/a"),
            Some("one".into()),
            "two".into(),
            str::to_owned,
        );
        record.write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), Some(record.clone()));
        record.format = 7;
        record.write(&path).unwrap();
        let error = Record::read(&path).unwrap_err().to_string();
        assert!(error.contains("has format 7, expected 1"), "{error}");
        std::fs::write(&path, "{}").unwrap();
        let error = Record::read(&path).unwrap_err().to_string();
        assert!(error.contains("installed.json is not a record"), "{error}");
    }

    #[test]
    fn what_goes_back_is_the_first_text_or_what_others_made_of_it() {
        let (path, mut record) = (Path::new("/a"), Record::new());
        let cut = |text: &str| text.replace(" ours", "");
        record.change(path, Some("one".into()), "one ours".into(), cut);
        // Once more, killed before it was written, and after.
        record.change(path, Some("one".into()), "one ours".into(), cut);
        record.change(path, Some("one ours".into()), "one ours".into(), cut);
        assert_eq!(record.files[0].original.as_deref(), Some("one"));
        record.change(path, Some("three ours".into()), "three ours".into(), cut);
        assert_eq!(record.files[0].original.as_deref(), Some("three"));
        assert_eq!(record.files.len(), 1);
    }

    #[test]
    fn what_containerd_did_not_take_is_forgotten() {
        let mut record = Record::new();
        let (main, own) = (Path::new("/main"), Path::new("/own"));
        for (path, now, next) in [(own, None, "runtime"), (main, Some("a"), "a, import")] {
            record.change(path, now.map(str::to_owned), next.into(), str::to_owned);
            record.doubt(path, now.map(str::to_owned));
            // A second try, before it was seen to run.
            record.doubt(path, Some(next.to_owned()));
        }
        let back = record.take_back();
        let texts: Vec<_> = back
            .iter()
            .map(|one| (one.path.as_path(), one.text.as_deref()))
            .collect();
        assert_eq!(texts, [(main, Some("a")), (own, None)]);
        assert!(record.files.is_empty() && record.unproven.is_empty());
    }

    #[test]
    fn an_update_that_containerd_did_not_take_leaves_the_one_before() {
        let (main, mut record) = (Path::new("/main"), Record::new());
        record.change(main, Some("a".into()), "a, ours 1".into(), str::to_owned);
        record.change(
            main,
            Some("a, ours 1".into()),
            "a, ours 2".into(),
            str::to_owned,
        );
        record.doubt(main, Some("a, ours 1".into()));
        record.take_back();
        assert_eq!(record.files[0].original.as_deref(), Some("a"));
        assert_eq!(record.files[0].written, "a, ours 1");
    }
}
