//! Commands that run on processors that nobody else wants at the time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result};

/// Where processors are shared out: version 1 of control groups has a hierarchy for them, version 2 one for all.
const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup"];

/// A control group whose processes give way to all others (`cpu.idle`, Linux 5.15). The scheduling policy `SCHED_IDLE`
/// alone does not do: where sessions are groups of their own (`CONFIG_SCHED_AUTOGROUP`), it counts within one only.
///
/// It goes with this value, whose processes must have ended by then.
pub struct Leisure {
    group: PathBuf,
}

impl Leisure {
    /// Makes the group. Root may, where the kernel is not older.
    ///
    /// # Errors
    /// When the system does not let it be made.
    pub fn new() -> Result<Self> {
        let name = format!("podmotion-xtask-{}", std::process::id());
        let [first, second] = HIERARCHIES.map(|hierarchy| Path::new(hierarchy).join(&name));
        let group = make(&first).or_else(|_| make(&second))?;
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

fn make(group: &Path) -> Result<PathBuf> {
    fs::create_dir(group).with_context(|| format!("cannot create {}", group.display()))?;
    let path = group.join("cpu.idle");
    fs::write(&path, "1")
        .with_context(|| format!("cannot write to {}", path.display()))
        .inspect_err(|_| remove(group))?;
    Ok(group.to_owned())
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
