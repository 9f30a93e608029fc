//! Commands that run on what others leave of the processors.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result};

/// Where processors are shared out, and what says by what share: version 1 of control groups has a hierarchy for them,
/// version 2 one for all. One part of seventeen, where one other group wants all of a processor: with nothing at all
/// (`cpu.idle`) a virtual machine stands still until its own time limits are over.
const HIERARCHIES: [(&str, &str, &str); 2] = [
    ("/sys/fs/cgroup/cpu", "cpu.shares", "64"),
    ("/sys/fs/cgroup", "cpu.weight", "6"),
];

/// A control group whose processes give way to all others. A scheduling policy or niceness does not do: where sessions
/// are groups of their own (`CONFIG_SCHED_AUTOGROUP`), they count within one only.
///
/// It goes with this value, whose processes must have ended by then.
pub struct Leisure {
    group: PathBuf,
}

impl Leisure {
    /// Makes the group, as root may.
    ///
    /// # Errors
    /// When the system does not let it be made.
    pub fn new() -> Result<Self> {
        let name = format!("podmotion-xtask-{}", std::process::id());
        let [first, second] = HIERARCHIES;
        let of = |(hierarchy, file, share)| make(Path::new(hierarchy).join(&name), file, share);
        let group = of(first).or_else(|_| of(second))?;
        Ok(Self { group })
    }

    /// Has `child`, and whom it starts from now on, wait for all others.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn take(&self, child: &Child) -> Result<()> {
        let path = self.group.join("cgroup.procs");
        fs::write(&path, child.id().to_string())
            .with_context(|| format!("cannot write to {}", path.display()))
    }
}

fn make(group: PathBuf, file: &str, share: &str) -> Result<PathBuf> {
    fs::create_dir(&group).with_context(|| format!("cannot create {}", group.display()))?;
    let path = group.join(file);
    fs::write(&path, share)
        .with_context(|| format!("cannot write to {}", path.display()))
        .inspect_err(|_| remove(&group))?;
    Ok(group)
}

fn remove(group: &Path) {
    if let Err(error) = fs::remove_dir(group) {
        eprintln!("{} is left: {error}", group.display());
    }
}

impl Drop for Leisure {
    fn drop(&mut self) {
        remove(&self.group);
    }
}
