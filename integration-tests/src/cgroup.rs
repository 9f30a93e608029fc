//! Control groups of this run: everything is below one, called after the run, in every hierarchy.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::PATIENCE;
use crate::machine::run;

/// Names a [`CgroupDriver`] in the environment.
pub(crate) const DRIVER: &str = "PODMOTION_TEST_CGROUP_DRIVER";

/// Who makes the control groups of containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// runc itself.
    #[default]
    Cgroupfs,
    /// systemd, which runc asks for a scope per container. It must run the machine.
    Systemd,
}

impl CgroupDriver {
    /// `$PODMOTION_TEST_CGROUP_DRIVER`: `systemd`, or `cgroupfs`, as without it.
    pub fn from_env() -> Result<Self> {
        let Some(name) = env::var_os(DRIVER) else {
            return Ok(Self::default());
        };
        [Self::Cgroupfs, Self::Systemd]
            .into_iter()
            .find(|driver| name == driver.name())
            .with_context(|| format!("{DRIVER} is {name:?}, not cgroupfs or systemd"))
    }

    /// Its name, as the kubelet calls it too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

/// The control groups of one run.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    driver: CgroupDriver,
    run: String,
}

impl Groups {
    pub(crate) fn new(driver: CgroupDriver, run: &str) -> Self {
        let run = run.to_owned();
        Self { driver, run }
    }

    pub(crate) fn driver(&self) -> CgroupDriver {
        self.driver
    }

    /// The group that all others are below, as a path below each hierarchy.
    pub(crate) fn top(&self) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => format!("/{}", self.run),
            CgroupDriver::Systemd => {
                // A slice is in the slice that its name without the last part names. The ones above this
                // one belong to no run: they stay.
                let parts: Vec<_> = self.run.split('-').collect();
                (1..=parts.len())
                    .map(|count| format!("/{}.slice", parts[..count].join("-")))
                    .collect()
            }
        }
    }

    /// What CRI is told to put a pod below.
    pub(crate) fn pod_parent(&self) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => self.top(),
            CgroupDriver::Systemd => self.slice(),
        }
    }

    /// `linux.cgroupsPath` of a container.
    pub(crate) fn to_spec(&self, container: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => self.of(container),
            CgroupDriver::Systemd => format!("{}:test:{container}", self.slice()),
        }
    }

    /// The group of a container of that path, below each hierarchy.
    pub(crate) fn of(&self, container: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => format!("{}/{container}", self.top()),
            CgroupDriver::Systemd => format!("{}/test-{container}.scope", self.top()),
        }
    }

    /// Makes a group of that name in the run's, in every hierarchy, for a kubelet: it puts its own groups below
    /// one that is there. Its path below each hierarchy.
    pub(crate) fn create(&self, name: &str) -> Result<String> {
        for top in self.tops()? {
            let group = top.join(name);
            fs::create_dir_all(&group)
                .with_context(|| format!("create cgroup {}", group.display()))?;
        }
        Ok(format!("{}/{name}", self.top()))
    }

    /// Every directory of every hierarchy below the run's group.
    pub(crate) fn directories(&self) -> Result<BTreeSet<PathBuf>> {
        let mut found = BTreeSet::new();
        for top in self.tops()? {
            collect(&top, &mut found);
        }
        Ok(found)
    }

    /// Lets all processes of all of them run.
    pub(crate) fn thaw_all(&self) -> Result<()> {
        for directory in self.directories()? {
            for (file, value) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
                let path = directory.join(file);
                match fs::write(&path, value) {
                    // Another hierarchy's, or gone meanwhile.
                    Err(error) if error.kind() != ErrorKind::NotFound && path.exists() => {
                        return Err(error).with_context(|| format!("write {}", path.display()));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Removes all of them and the run's group. All processes in it must be dead; the kernel takes a moment
    /// to let go of them and has no event for it, so a busy group is tried again for two seconds.
    pub(crate) fn remove(&self) -> Result<()> {
        let tops = self.tops()?;
        if self.driver == CgroupDriver::Systemd && tops.iter().any(|top| top.exists()) {
            let patience = PATIENCE.as_secs().to_string();
            run(Command::new("timeout").args([&patience, "systemctl", "stop", &self.slice()]))
                .with_context(|| format!("remove {}", self.slice()))?;
        }
        for top in tops {
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

    fn slice(&self) -> String {
        format!("{}.slice", self.run)
    }

    /// The run's group in each hierarchy; it need not be there.
    fn tops(&self) -> Result<Vec<PathBuf>> {
        let top = self.top();
        let relative = top.trim_start_matches('/');
        Ok(hierarchies()?
            .into_iter()
            .map(|root| root.join(relative))
            .collect())
    }
}

/// A group's limit of memory in bytes; the group is given as [`crate::Container::cgroup`] does.
pub fn memory_limit(group: &str) -> Result<u64> {
    for path in [
        format!("/sys/fs/cgroup/memory{group}/memory.limit_in_bytes"),
        format!("/sys/fs/cgroup{group}/memory.max"),
    ] {
        if let Ok(text) = fs::read_to_string(&path) {
            return text.trim().parse().with_context(|| format!("read {path}"));
        }
    }
    bail!("no memory limit of {group}")
}

/// The group of a pod's container, found by its id, as [`crate::Container::cgroup`] gives others'.
pub fn cgroup_of(container: &str) -> Result<String> {
    let groups = crate::Machine::get()?.groups().directories()?;
    for root in hierarchies()? {
        let mut inside = groups
            .iter()
            .filter_map(|group| group.strip_prefix(&root).ok());
        let found = inside.find(|group| {
            let name = group.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.contains(container))
        });
        if let Some(group) = found {
            return Ok(format!("/{}", group.display()));
        }
    }
    bail!("{container} has none of the groups {groups:?}")
}

/// Microseconds of CPU time that a group may use in a period of 100 milliseconds.
pub fn cpu_quota(group: &str) -> Result<u64> {
    for path in [
        format!("/sys/fs/cgroup/cpu{group}/cpu.cfs_quota_us"),
        format!("/sys/fs/cgroup{group}/cpu.max"),
    ] {
        if let Ok(text) = fs::read_to_string(&path) {
            let quota = text.split_ascii_whitespace().next().unwrap_or_default();
            return quota.parse().with_context(|| format!("read {path}"));
        }
    }
    bail!("no CPU quota of {group}")
}

/// Whether all processes of a group stand still.
pub fn is_frozen(group: &str) -> Result<bool> {
    let version1 = format!("/sys/fs/cgroup/freezer{group}/freezer.state");
    if let Ok(state) = fs::read_to_string(version1) {
        return Ok(state.trim() == "FROZEN");
    }
    let version2 = format!("/sys/fs/cgroup{group}/cgroup.events");
    fs::read_to_string(&version2)
        .with_context(|| format!("read {version2}"))
        .map(|events| events.lines().any(|line| line == "frozen 1"))
}

/// Has the processes of a group stand still; returns once they do.
pub fn freeze(group: &str) -> Result<()> {
    set_freezer(group, "FROZEN", "1")?;
    while !is_frozen(group)? {
        // That of version 1 gets on with it when it is asked.
        thread::yield_now();
    }
    Ok(())
}

/// Lets the processes of a group run, whoever has frozen it.
pub fn thaw(group: &str) -> Result<()> {
    set_freezer(group, "THAWED", "0")
}

fn set_freezer(group: &str, version1: &str, version2: &str) -> Result<()> {
    let state = format!("/sys/fs/cgroup/freezer{group}/freezer.state");
    let (path, value) = match fs::exists(&state) {
        Ok(true) => (state, version1),
        _ => (format!("/sys/fs/cgroup{group}/cgroup.freeze"), version2),
    };
    fs::write(&path, value).with_context(|| format!("write {value} to {path}"))
}

/// Where a group is in each hierarchy that has it; the group is given as [`crate::Container::cgroup`]
/// does.
pub fn cgroup_folders(group: &str) -> Result<Vec<PathBuf>> {
    let mut folders: Vec<_> = hierarchies()?
        .into_iter()
        .map(|root| root.join(group.trim_start_matches('/')))
        .filter(|folder| folder.is_dir())
        .collect();
    // Two controllers may be one hierarchy with two names.
    folders.dedup();
    if folders.is_empty() {
        bail!("no group {group} in any hierarchy");
    }
    Ok(folders)
}

/// Memory that a group has, in bytes.
pub fn memory_usage(group: &str) -> Result<u64> {
    let files = ["memory.usage_in_bytes", "memory.current"];
    let path = memory_file(group, files)?;
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    text.trim()
        .parse()
        .with_context(|| format!("read {}", path.display()))
}

/// Limits a group's memory past whoever made it, in bytes; or does so no more.
pub fn set_memory_limit(group: &str, limit: Option<u64>) -> Result<()> {
    let path = memory_file(group, ["memory.limit_in_bytes", "memory.max"])?;
    let none = if path.ends_with("memory.max") {
        "max"
    } else {
        "-1"
    };
    let text = limit.map_or_else(|| none.to_owned(), |limit| limit.to_string());
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

/// A group's file, by its names in version 1 and 2.
fn memory_file(group: &str, [first, second]: [&str; 2]) -> Result<PathBuf> {
    let paths = [
        format!("/sys/fs/cgroup/memory{group}/{first}"),
        format!("/sys/fs/cgroup{group}/{second}"),
    ];
    paths
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .with_context(|| format!("no {first} of {group}"))
}

/// Mount points of all hierarchies, version 1 and 2.
fn hierarchies() -> Result<Vec<PathBuf>> {
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

#[cfg(test)]
mod tests {
    use super::{CgroupDriver, Groups};

    #[test]
    fn groups_of_runc_are_below_the_runs() {
        let groups = Groups::new(CgroupDriver::Cgroupfs, "a-b-7");
        assert_eq!(groups.pod_parent(), "/a-b-7");
        assert_eq!(groups.to_spec("c0"), "/a-b-7/c0");
        assert_eq!(groups.of("c0"), "/a-b-7/c0");
    }

    #[test]
    fn scopes_are_in_the_runs_slice() {
        let groups = Groups::new(CgroupDriver::Systemd, "a-b-7");
        assert_eq!(groups.pod_parent(), "a-b-7.slice");
        assert_eq!(groups.to_spec("c0"), "a-b-7.slice:test:c0");
        let slice = "/a.slice/a-b.slice/a-b-7.slice";
        assert_eq!(groups.top(), slice);
        assert_eq!(groups.of("c0"), format!("{slice}/test-c0.scope"));
    }
}
