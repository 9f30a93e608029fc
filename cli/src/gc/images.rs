//! Checkpoints, and what is left of an interrupted self-test or `gc`, in the directory of the checkpoints.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::owners::Owners;
use super::{Leftover, Plan};

/// Where light sleep keeps the memory of a container, beside its checkpoint.
const MEMORY: &str = "memory";

/// Names that begin so are no container's.
const OURS: char = '.';

/// A directory that is old enough.
struct Candidate {
    path: PathBuf,
    name: String,
    inode: (u64, u64),
}

/// What may be without an owner.
pub struct Candidates {
    found: Vec<Candidate>,
}

impl Candidates {
    /// All directories in `directory` in which nothing has changed for `min_age`. Must come before the
    /// owners are asked.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn find(directory: &Path, min_age: Duration) -> Result<Self> {
        let failed = || format!("list {}", directory.display());
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { found: Vec::new() });
            }
            other => other.with_context(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.with_context(failed)?;
            let Ok(about) = entry.metadata() else {
                // Its owner has removed it.
                continue;
            };
            if about.is_dir() && is_older(&entry.path(), &about, min_age) {
                found.push(Candidate {
                    path: entry.path(),
                    name: entry.file_name().to_string_lossy().into_owned(),
                    inode: inode(&about),
                });
            }
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self { found })
    }

    /// Removes those that nobody owns.
    pub fn remove(self, owners: &Owners, plan: Plan) -> Vec<Leftover> {
        let orphans = self
            .found
            .into_iter()
            .filter(|one| !is_owned(&one.name, owners));
        orphans
            .map(|orphan| {
                let kind = match orphan.name.starts_with(OURS) {
                    true => "remains",
                    false => "checkpoint",
                };
                let mut found = Leftover::new(kind, orphan.path.display().to_string());
                found.bytes = Some(size(&orphan.path));
                found.with(plan.remove(|| orphan.remove()))
            })
            .collect()
    }
}

impl Candidate {
    /// Takes it aside first: should a container of the same id have fallen asleep in this moment, it is another
    /// directory, and goes back.
    fn remove(&self) -> Result<()> {
        let aside =
            self.path
                .with_file_name(format!("{OURS}gc-{}-{}", std::process::id(), self.name));
        let renamed = |from: &Path, to: &Path| {
            renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
                .with_context(|| format!("rename {} to {}", from.display(), to.display()))
        };
        renamed(&self.path, &aside)?;
        let about = aside
            .symlink_metadata()
            .with_context(|| format!("look at {}", aside.display()))?;
        if inode(&about) != self.inode {
            renamed(&aside, &self.path)?;
            bail!("it was made anew meanwhile");
        }
        fs::remove_dir_all(&aside).with_context(|| format!("remove {}", aside.display()))
    }
}

fn inode(about: &Metadata) -> (u64, u64) {
    (about.dev(), about.ino())
}

/// `ID`, or `ID.memory`. An id may itself end like that.
fn is_owned(name: &str, owners: &Owners) -> bool {
    let without = name
        .strip_suffix(MEMORY)
        .and_then(|id| id.strip_suffix('.'));
    owners.have(name) || without.is_some_and(|id| owners.have(id))
}

/// Whether the directory and all files directly in it are that old.
fn is_older(path: &Path, about: &Metadata, min_age: Duration) -> bool {
    // A clock that was set back makes things look new: they stay.
    let old = |about: &Metadata| {
        about
            .modified()
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= min_age))
    };
    let inside = fs::read_dir(path).into_iter().flatten().flatten();
    old(about)
        && inside
            .filter_map(|entry| entry.metadata().ok())
            .all(|about| old(&about))
}

/// Bytes on disk, of what can be seen.
fn size(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(about) if about.is_dir() => size(&entry.path()),
            Ok(about) => about.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Plan = Plan {
        dry_run: false,
        min_age: Duration::ZERO,
    };

    fn images(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("pages-1.img"), vec![1; 10_000]).unwrap();
        }
        dir
    }

    fn left(dir: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(dir.path()).unwrap().flatten();
        let mut names: Vec<_> = entries
            .map(|one| one.file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_an_owner_has_stays_in_both_depths() {
        let dir = images(&["a", "a.memory", "b", "b.memory", ".gc-1-x"]);
        let found = Candidates::find(dir.path(), NOW.min_age).unwrap();
        let removed = found.remove(&Owners::of(&["a"]), NOW);
        assert_eq!(left(&dir), ["a", "a.memory"]);
        assert_eq!(removed.len(), 3);
        assert!(
            removed
                .iter()
                .all(|one| one.removed && one.bytes >= Some(10_000)),
            "{removed:?}"
        );
    }

    #[test]
    fn what_is_young_stays_and_a_dry_run_removes_nothing() {
        let dir = images(&["a"]);
        let hour = Duration::from_secs(3600);
        assert!(Candidates::find(dir.path(), hour).unwrap().found.is_empty());
        let dry = Plan {
            dry_run: true,
            ..NOW
        };
        let listed = Candidates::find(dir.path(), NOW.min_age)
            .unwrap()
            .remove(&Owners::of(&[]), dry);
        assert_eq!(listed.len(), 1);
        assert!(!listed[0].removed);
        assert_eq!(left(&dir), ["a"]);
    }

    #[test]
    fn a_directory_that_was_made_anew_goes_back() {
        let dir = images(&["a"]);
        let found = Candidates::find(dir.path(), NOW.min_age).unwrap();
        let path = dir.path().join("a");
        fs::rename(&path, dir.path().join("old")).unwrap();
        fs::create_dir(&path).unwrap();
        let removed = found.remove(&Owners::of(&[]), NOW);
        assert!(
            removed[0]
                .error
                .as_deref()
                .is_some_and(|error| error.contains("made anew")),
            "{removed:?}"
        );
        assert_eq!(left(&dir), ["a", "old"]);
    }
}
