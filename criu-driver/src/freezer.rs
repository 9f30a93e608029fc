//! The cgroup freezer, both versions.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};

use crate::launch;

/// The freezer of one cgroup directory.
#[derive(Debug, Clone)]
pub struct Freezer {
    directory: PathBuf,
    version: CgroupVersion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CgroupVersion {
    V1,
    V2,
}

/// State of a cgroup's tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezerState {
    /// Running.
    Thawed,
    /// Some tasks still run.
    Freezing,
    /// Every task is stopped.
    Frozen,
}

/// Freezing or thawing failed.
#[derive(Debug, thiserror::Error)]
pub enum FreezerError {
    /// The directory has no freezer.
    #[error("{} has neither freezer.state nor cgroup.freeze", directory.display())]
    Missing {
        /// The cgroup directory.
        directory: PathBuf,
    },
    /// A control file cannot be used.
    #[error("{operation} {}", path.display())]
    Control {
        /// What was tried.
        operation: &'static str,
        /// The control file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Processes that were killed did not end in time.
    #[error("processes of cgroup {} were still there {within:?} after they were killed", directory.display())]
    Alive {
        /// The cgroup directory.
        directory: PathBuf,
        /// The time they had.
        within: Duration,
    },
    /// The tasks did not stop in time; the cgroup was thawed again.
    #[error("cgroup {} did not freeze within {within:?}", directory.display())]
    TimedOut {
        /// The cgroup directory.
        directory: PathBuf,
        /// The time it had.
        within: Duration,
    },
}

impl Freezer {
    /// The freezer of `directory`.
    ///
    /// # Errors
    /// When the directory has no freezer.
    pub fn new(directory: &Path) -> Result<Self, FreezerError> {
        let version = if directory.join("freezer.state").exists() {
            CgroupVersion::V1
        } else if directory.join("cgroup.freeze").exists() {
            CgroupVersion::V2
        } else {
            return Err(FreezerError::Missing {
                directory: directory.to_owned(),
            });
        };
        Ok(Self {
            directory: directory.to_owned(),
            version,
        })
    }

    /// Stops every task of the cgroup and returns once all of them are stopped.
    ///
    /// # Errors
    /// When a control file fails, or tasks do not stop `within` the time (one that sits in an
    /// uninterruptible sleep does not); the cgroup is thawed again then.
    pub fn freeze(&self, within: Duration) -> Result<(), FreezerError> {
        let result = match self.version {
            CgroupVersion::V1 => self.freeze_v1(within),
            CgroupVersion::V2 => self.freeze_v2(within),
        };
        if result.is_err() {
            self.thaw()?;
        }
        result
    }

    /// Lets the tasks run again. Does nothing where they do.
    ///
    /// # Errors
    /// When the control file cannot be written.
    pub fn thaw(&self) -> Result<(), FreezerError> {
        match self.version {
            CgroupVersion::V1 => self.write("freezer.state", "THAWED"),
            CgroupVersion::V2 => self.write("cgroup.freeze", "0"),
        }
    }

    /// What the cgroup's tasks do now.
    ///
    /// # Errors
    /// When the control file cannot be read.
    pub fn state(&self) -> Result<FreezerState, FreezerError> {
        match self.version {
            CgroupVersion::V1 => {
                let state = self.read("freezer.state")?;
                Ok(match state.trim() {
                    "FROZEN" => FreezerState::Frozen,
                    "FREEZING" => FreezerState::Freezing,
                    _ => FreezerState::Thawed,
                })
            }
            CgroupVersion::V2 => {
                if self.read("cgroup.freeze")?.trim() == "0" {
                    return Ok(FreezerState::Thawed);
                }
                Ok(if reached(&self.read("cgroup.events")?) {
                    FreezerState::Frozen
                } else {
                    FreezerState::Freezing
                })
            }
        }
    }

    /// All processes in the cgroup and below it, as pids on the host.
    ///
    /// # Errors
    /// When the cgroup cannot be read; one that is gone has none.
    pub fn processes(&self) -> Result<Vec<i32>, FreezerError> {
        let mut pids = Vec::new();
        collect(&self.directory, &mut pids).map_err(|source| FreezerError::Control {
            operation: "list processes of",
            path: self.directory.clone(),
            source,
        })?;
        Ok(pids)
    }

    /// Kills everything in the cgroup and below, frozen or not; nothing of it runs once more.
    ///
    /// # Errors
    /// When the cgroup cannot be used, or processes are still there after the time `within`.
    pub fn end_processes(&self, within: Duration) -> Result<(), FreezerError> {
        let deadline = Instant::now() + within;
        loop {
            let processes: Vec<_> = self
                .processes()?
                .into_iter()
                .flat_map(launch::pidfd)
                .filter(|process| pidfd_send_signal(process, Signal::KILL).is_ok())
                .collect();
            // A frozen task of version 1 dies only now.
            self.thaw()?;
            // A process can have made another before it was killed.
            if processes.is_empty() {
                return Ok(());
            }
            let ended = |process| launch::wait_exit(process, deadline).unwrap_or(false);
            if !processes.iter().all(ended) || Instant::now() >= deadline {
                return Err(FreezerError::Alive {
                    directory: self.directory.clone(),
                    within,
                });
            }
        }
    }

    /// Version 1 has no event. A write of `FROZEN` tries once more to stop what still runs, so it
    /// is repeated, as reading the state is.
    fn freeze_v1(&self, within: Duration) -> Result<(), FreezerError> {
        let deadline = Instant::now() + within;
        loop {
            self.write("freezer.state", "FROZEN")?;
            if self.state()? == FreezerState::Frozen {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.timed_out(within));
            }
            thread::yield_now();
        }
    }

    fn freeze_v2(&self, within: Duration) -> Result<(), FreezerError> {
        let deadline = Instant::now() + within;
        let path = self.directory.join("cgroup.events");
        let control = |operation, source| FreezerError::Control {
            operation,
            path: path.clone(),
            source,
        };
        let mut events = File::open(&path).map_err(|e| control("open", e))?;
        self.write("cgroup.freeze", "1")?;
        loop {
            let mut text = String::new();
            events
                .seek(SeekFrom::Start(0))
                .and_then(|_| events.read_to_string(&mut text))
                .map_err(|e| control("read", e))?;
            if reached(&text) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.timed_out(within));
            }
            let timeout = Timespec::try_from(left).ok();
            // The kernel signals a changed events file as priority data.
            let mut fds = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(control("wait for", e.into())),
            }
        }
    }

    fn timed_out(&self, within: Duration) -> FreezerError {
        FreezerError::TimedOut {
            directory: self.directory.clone(),
            within,
        }
    }

    fn write(&self, name: &str, value: &str) -> Result<(), FreezerError> {
        let path = self.directory.join(name);
        let written = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        written.map_err(|source| FreezerError::Control {
            operation: "write",
            path,
            source,
        })
    }

    fn read(&self, name: &str) -> Result<String, FreezerError> {
        let path = self.directory.join(name);
        fs::read_to_string(&path).map_err(|source| FreezerError::Control {
            operation: "read",
            path,
            source,
        })
    }
}

fn reached(events: &str) -> bool {
    events.lines().any(|line| line == "frozen 1")
}

/// Pids in `directory` and in the cgroups below it.
pub(crate) fn collect(directory: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let text = match fs::read_to_string(directory.join("cgroup.procs")) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), pids)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_a_freezer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Freezer::new(dir.path()).unwrap_err();
        assert!(error.to_string().contains(dir.path().to_str().unwrap()));
    }

    #[test]
    fn version_1_states_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("freezer.state");
        fs::write(&file, "FREEZING\n").unwrap();
        let freezer = Freezer::new(dir.path()).unwrap();
        assert_eq!(freezer.state().unwrap(), FreezerState::Freezing);
        fs::write(&file, "FROZEN\n").unwrap();
        assert_eq!(freezer.state().unwrap(), FreezerState::Frozen);
        fs::write(&file, "THAWED\n").unwrap();
        assert_eq!(freezer.state().unwrap(), FreezerState::Thawed);
    }

    #[test]
    fn version_2_is_frozen_only_when_the_event_says_so() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.freeze"), "1\n").unwrap();
        fs::write(dir.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        let freezer = Freezer::new(dir.path()).unwrap();
        assert_eq!(freezer.state().unwrap(), FreezerState::Freezing);
        fs::write(dir.path().join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        assert_eq!(freezer.state().unwrap(), FreezerState::Frozen);
        fs::write(dir.path().join("cgroup.freeze"), "0\n").unwrap();
        assert_eq!(freezer.state().unwrap(), FreezerState::Thawed);
    }

    #[test]
    fn a_version_2_cgroup_that_never_freezes_is_thawed_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.freeze"), "0").unwrap();
        fs::write(dir.path().join("cgroup.events"), "frozen 0\n").unwrap();
        let freezer = Freezer::new(dir.path()).unwrap();
        let error = freezer.freeze(Duration::from_millis(5)).unwrap_err();
        assert!(matches!(error, FreezerError::TimedOut { .. }), "{error}");
        assert_eq!(freezer.state().unwrap(), FreezerState::Thawed);
    }

    #[test]
    fn processes_below_are_listed_too() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("freezer.state"), "THAWED").unwrap();
        fs::write(dir.path().join("cgroup.procs"), "1\n2\n").unwrap();
        fs::create_dir(dir.path().join("child")).unwrap();
        fs::write(dir.path().join("child/cgroup.procs"), "3\n").unwrap();
        let freezer = Freezer::new(dir.path()).unwrap();
        assert_eq!(freezer.processes().unwrap(), [1, 2, 3]);
    }
}
