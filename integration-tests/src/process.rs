//! Processes of this run: those with the run's mark in the environment (the daemon hands it on to shims
//! and what they start) or in one of the run's control groups (what is in containers).

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::cgroup::Groups;

/// Set, to the run's name, in the environment of every daemon that the harness starts.
pub(crate) const MARK: &str = "PODMOTION_TEST_RUN";

/// One process of this run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnProcess {
    /// Its id in the harness's pid namespace.
    pub pid: i32,
    /// Its arguments, joined by blanks; empty for a zombie.
    pub command: String,
}

impl OwnProcess {
    /// Whether its executable has this file name.
    pub fn is(&self, program: &str) -> bool {
        let first = self.command.split(' ').next().unwrap_or_default();
        first.rsplit('/').next() == Some(program)
    }

    /// Whether it is the child of a shim that keeps the descriptors of missing memory. It has the
    /// shim's command line.
    pub fn is_keeper(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/comm", self.pid))
            .is_ok_and(|name| name.trim() == "podmotion-keep")
    }
}

/// All processes of the run `name`, zombies included while their environment or group still says so.
pub(crate) fn of_run(name: &str, groups: &Groups) -> Result<Vec<OwnProcess>> {
    let mark = format!("{MARK}={name}");
    let group = format!("{}/", groups.top());
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        // A process that ends while it is looked at is none.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let marked = environment.split(|b| *b == 0).any(|v| v == mark.as_bytes());
        if pid != std::process::id() as i32 && (marked || groups.contains(&group)) {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            found.push(OwnProcess {
                pid,
                command: command.trim_end().to_owned(),
            });
        }
    }
    found.sort();
    Ok(found)
}

/// All processes of this run except the harness itself.
///
/// Requires [`crate::Machine::enter`].
pub fn own_processes() -> Result<Vec<OwnProcess>> {
    let machine = crate::Machine::get()?;
    of_run(machine.name(), machine.groups())
}

/// Waits until a process has ended. One that is already gone counts.
pub fn wait_gone(pid: i32, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let pid = Pid::from_raw(pid).context("pid 0 is no process")?;
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("open process {pid}")),
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("convert the time left")?;
        let mut fds = [PollFd::new(&handle, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => bail!("process {pid} still runs after {patience:?}"),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).with_context(|| format!("wait for process {pid}")),
        }
    }
}

/// Whether it has ended and only its parent has not noticed.
fn is_zombie(pid: i32) -> bool {
    // The state follows the name, which is in parentheses and may itself contain some.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with('Z'))
    })
}

/// How long killed processes are waited for at a time.
const ROUND: Duration = Duration::from_secs(5);

/// Kills every process of a run, round by round until none is left.
pub(crate) fn kill_run(name: &str, groups: &Groups) -> Result<()> {
    for _ in 0..10 {
        let mut alive = of_run(name, groups)?;
        alive.retain(|process| !is_zombie(process.pid));
        if alive.is_empty() {
            return Ok(());
        }
        for process in &alive {
            if let Some(pid) = Pid::from_raw(process.pid) {
                // It may have ended by itself.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        // Those that a killed shim has left frozen would not even end.
        groups.thaw_all()?;
        // Who takes longer, on a machine that may be busy, is thawed and waited for once more.
        let deadline = Instant::now() + ROUND;
        alive.iter().all(|process| {
            let left = deadline.saturating_duration_since(Instant::now());
            wait_gone(process.pid, left).is_ok()
        });
    }
    bail!(
        "processes of {name} do not end, or come up again and again: {:?}",
        of_run(name, groups)?
    )
}
