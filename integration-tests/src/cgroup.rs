//! Control groups of this run: everything is below one name, in every hierarchy.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Mount points of all hierarchies, version 1 and 2.
pub(crate) fn hierarchies() -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let kind = right.split(' ').next()?;
            matches!(kind, "cgroup" | "cgroup2")
                .then(|| left.split(' ').nth(4).map(PathBuf::from))
                .flatten()
        })
        .collect())
}

/// Every directory of every hierarchy below `name`, `name` excluded.
pub(crate) fn directories(name: &str) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for root in hierarchies()? {
        collect(&root.join(name), &mut found);
    }
    Ok(found)
}

fn collect(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    // A group that disappears while it is read is as good as gone.
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
            found.insert(entry.path());
        }
    }
}

/// Removes `name` and everything below it. All processes in it must be dead; the kernel takes a moment to
/// let go of them and has no event for it, so a busy group is tried again for two seconds.
pub(crate) fn remove(name: &str) -> Result<()> {
    for root in hierarchies()? {
        let top = root.join(name);
        let mut found = BTreeSet::new();
        collect(&top, &mut found);
        for directory in found.iter().rev().chain([&top]) {
            let deadline = Instant::now() + Duration::from_secs(2);
            while let Err(error) = fs::remove_dir(directory) {
                if error.kind() == ErrorKind::NotFound {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(error)
                        .with_context(|| format!("remove cgroup {}", directory.display()));
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
    Ok(())
}
