//! What this run has made and not taken away again, as a set of names to compare.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use podmotion_bpf::{DEFAULT_PIN_DIR, Maps};

use crate::PATIENCE;
use crate::machine::{Machine, run};
use crate::process::{own_processes, wait_gone};

/// Folders in which every file, socket and directory counts.
const FOLDERS: &[&str] = &[
    "/run",
    "/var/lib/podmotion",
    "/etc/podmotion",
    "/opt/podmotion",
    "/sys/fs/bpf",
    "/var/lib/cni",
];

/// What CRIU knows of the kernel: made at its first use on a node, for all that follow.
const CRIU_CACHE: &str = "/run/criu.kdat";

/// The directory of the checkpoints, and the files in it by which shims see one another: made at their
/// first use on a node, for all that follow.
const SHARED: &[&str] = &[
    "/var/lib/podmotion/checkpoints",
    "/var/lib/podmotion/checkpoints/.lock",
    "/var/lib/podmotion/checkpoints/.shims",
];

/// How long a runtime may take to clean up after its last answer.
const CLEANUP: Duration = PATIENCE;

/// How long a shim may take to end once its bundle is gone.
const END: Duration = Duration::from_secs(5);

/// Everything of this run on the machine: processes, mounts, control groups, network namespaces with their
/// links and queueing disciplines, entries of the gate's maps, and files in the folders that runtimes use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// A line per thing, and how many are alike.
    things: BTreeMap<String, usize>,
}

impl Census {
    /// Counts now, but what is about to go is waited for: the shim of a container that was deleted just before.
    /// [`Machine::enter`] must have been called.
    pub fn take() -> Result<Self> {
        let machine = Machine::get()?;
        let mut census = Self::default();
        for process in own_processes()? {
            if has_no_bundle(process.pid) && wait_gone(process.pid, END).is_ok() {
                continue;
            }
            census.add(format!("process {} {}", process.pid, process.command));
        }
        for point in machine.new_mounts()? {
            census.add(format!("mount {point}"));
        }
        for directory in machine.groups().directories()? {
            census.add(format!("cgroup {}", directory.display()));
        }
        for folder in FOLDERS {
            census.add_files(Path::new(folder));
        }
        census.add_map_entries()?;
        census.add_network("node", None)?;
        let namespaces = run(Command::new("ip").args(["netns", "list"]))?;
        for line in namespaces.lines() {
            let name = line.split(' ').next().unwrap_or_default();
            census.add_network(name, Some(name))?;
        }
        Ok(census)
    }

    /// What came and what went since `before`.
    pub fn since(&self, before: &Self) -> Difference {
        let names: BTreeSet<_> = self.things.keys().chain(before.things.keys()).collect();
        let mut difference = Difference::default();
        for name in names {
            let now = self.things.get(name).copied().unwrap_or_default();
            let then = before.things.get(name).copied().unwrap_or_default();
            if now > then {
                difference.more.insert(name.clone(), now - then);
            } else if then > now {
                difference.fewer.insert(name.clone(), then - now);
            }
        }
        difference
    }

    /// Waits until things are as they were in `before`, or says in what they differ. Runtimes clean up
    /// after they have answered, in many places, and have no event for the last one: so this counts again
    /// and again, for as long as anything may take.
    pub fn wait_as_before(before: &Self) -> Result<()> {
        Self::wait_as_before_but(before, &[])
    }

    /// The same, without regard to things whose line starts with one of `except`, for example
    /// `file /run/x`.
    pub fn wait_as_before_but(before: &Self, except: &[&str]) -> Result<()> {
        let deadline = Instant::now() + CLEANUP;
        loop {
            let mut difference = Self::take()?.since(before);
            for things in [&mut difference.more, &mut difference.fewer] {
                things.retain(|thing, _| !except.iter().any(|start| thing.starts_with(start)));
            }
            if difference.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("after {CLEANUP:?} things are not as before:\n{difference}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn add(&mut self, thing: String) {
        *self.things.entry(thing).or_default() += 1;
    }

    /// A folder that is not there, or goes while it is read, has no files.
    fn add_files(&mut self, folder: &Path) {
        let Ok(entries) = fs::read_dir(folder) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.path() == Path::new(CRIU_CACHE) {
                continue;
            }
            if !SHARED.iter().any(|path| entry.path() == Path::new(path)) {
                self.add(format!("file {}", entry.path().display()));
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add_files(&entry.path());
            }
        }
    }

    fn add_map_entries(&mut self) -> Result<()> {
        let folder = Path::new(DEFAULT_PIN_DIR);
        if !folder.exists() {
            return Ok(());
        }
        let maps = Maps::open(folder).context("open the gate's maps")?;
        for (name, entries) in [
            ("netns", maps.netns.keys()?.len()),
            ("ports", maps.ports.keys()?.len()),
            ("flows", maps.flows.keys()?.len()),
            ("counters", maps.counters.keys()?.len()),
        ] {
            self.things.insert(format!("map entry {name}"), entries);
        }
        Ok(())
    }

    fn add_network(&mut self, name: &str, namespace: Option<&str>) -> Result<()> {
        let inside = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            if let Some(namespace) = namespace {
                command.args(["-n", namespace]);
            }
            run(command.args(arguments))
        };
        // A namespace may go between the list and this.
        let (Ok(links), Ok(disciplines)) = (
            inside("ip", &["-brief", "link", "show"]),
            inside("tc", &["qdisc", "show"]),
        ) else {
            return Ok(());
        };
        self.add(format!("netns {name}"));
        for line in links.lines() {
            let link = line.split([' ', '@']).next().unwrap_or_default();
            self.add(format!("link {name} {link}"));
        }
        for line in disciplines.lines() {
            self.add(format!("qdisc {name} {}", line.trim_end()));
        }
        Ok(())
    }
}

/// Whether it is a shim, or a child of one, that containerd has told to end: its bundle, in which it runs, is removed
/// before the deletion is answered, and its sockets go only with it.
fn has_no_bundle(pid: i32) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd"))
        .is_ok_and(|folder| folder.to_string_lossy().ends_with(" (deleted)"))
}

/// In what two counts differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// What there is more of now.
    pub more: BTreeMap<String, usize>,
    /// What there is less of now.
    pub fewer: BTreeMap<String, usize>,
}

impl Difference {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.more.is_empty() && self.fewer.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (sign, things) in [('+', &self.more), ('-', &self.fewer)] {
            for (thing, count) in things {
                write!(f, "{sign} {thing}")?;
                if *count > 1 {
                    write!(f, " ({count} times)")?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

/// A process's descriptors by what they refer to, numbers of sockets and pipes left out: to compare before
/// and after.
pub fn fds(pid: i32) -> Result<BTreeMap<String, usize>> {
    let folder = format!("/proc/{pid}/fd");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
        let entry = entry.with_context(|| format!("list {folder}"))?;
        // One that was closed meanwhile is not there.
        if let Ok(target) = fs::read_link(entry.path()) {
            let target = target.display().to_string();
            let kind = target
                .split_once(":[")
                .map_or(target.as_str(), |(kind, _)| kind);
            *found.entry(kind.to_owned()).or_default() += 1;
        }
    }
    Ok(found)
}

/// A process's private memory, in KiB (`RssAnon`).
pub fn rss_anon_kib(pid: i32) -> Result<u64> {
    status_number(pid, "RssAnon")
}

/// A number in `/proc/PID/status` (proc_pid_status(5)), such as `Threads`, or `VmPTE` in KiB.
pub fn status_number(pid: i32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .with_context(|| format!("no {field} in {path}"))
}
