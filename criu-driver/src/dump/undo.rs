//! A dump that did not go as it should: what becomes of the container.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{CURE_TIME, Dump, DumpFailure, DumpReport, Tasks, Written};
use crate::error::Error;
use crate::freezer::Freezer;
use crate::heal;
use crate::launch;

/// Whether the file system of `directory` has no block left. CRIU's log is on it too, so that its last
/// line need not be the one about it.
fn is_full(directory: &Path) -> bool {
    rustix::fs::statvfs(directory).is_ok_and(|disk| disk.f_bavail == 0)
}

/// A task that could not be put back dies within this time.
const CRASH_TIME: Duration = Duration::from_millis(100);

impl Dump<'_> {
    /// CRIU's line can be one about a call that failed; the container's descriptors say more.
    pub(super) fn explain(&self, cause: Error) -> Error {
        let Error::Refused { errno, log } = cause else {
            return cause;
        };
        let pids = match &self.freezer {
            Some(freezer) => freezer.processes().unwrap_or_default(),
            None => vec![self.request.pid],
        };
        match heal::unsupported(&pids) {
            Some((pid, what)) => Error::Unsupported { what, pid, log },
            None if is_full(self.request.images_dir) => Error::DiskFull {
                directory: self.request.images_dir.to_owned(),
                log,
            },
            None => Error::Refused { errno, log },
        }
    }

    /// Makes a container run on after a dump that failed before the commit.
    pub(super) fn put_back(&self, cause: &Error) -> Tasks {
        let healed = match &self.freezer {
            Some(freezer) => self.heal(freezer),
            None => heal::leave_repair_mode(&[self.request.pid]).is_ok(),
        };
        let died = matches!(cause, Error::Exited { .. } | Error::TimedOut { .. });
        let grace = if died { CRASH_TIME } else { Duration::ZERO };
        if launch::wait_exit(&self.target, Instant::now() + grace).unwrap_or(false) {
            return Tasks::Lost;
        }
        let gone = |pidfd: &OwnedFd| launch::wait_exit(pidfd, Instant::now()).unwrap_or(false);
        if !healed || (died && self.processes.iter().any(gone)) {
            return Tasks::Damaged;
        }
        Tasks::Running
    }

    fn heal(&self, freezer: &Freezer) -> bool {
        let within = self.request.freeze_timeout;
        // Frozen, no task meets a socket that is in repair mode. A cgroup that does not freeze is
        // healed running.
        let _ = freezer.freeze(within);
        let healed = freezer
            .processes()
            .map_err(io::Error::other)
            .and_then(|pids| heal::leave_repair_mode(&pids));
        let put_back = match self.held.is_empty() {
            true => Ok(()),
            false => self.insurance.put_back(&self.held, freezer, within),
        };
        if let Err(e) = &put_back {
            ::log::warn!("put back what CRIU has left: {e}");
        }
        let thawed = freezer.thaw();
        healed.is_ok() && put_back.is_ok() && thawed.is_ok()
    }

    /// CRIU died after the commit. The images are complete, so the rest of its work is done here.
    pub(super) fn finish(
        &self,
        started: Instant,
        written: Written,
        cause: Error,
    ) -> Result<DumpReport, DumpFailure> {
        let killed = rustix::process::pidfd_send_signal(&self.target, Signal::KILL);
        if let Some(freezer) = &self.freezer {
            // A frozen task of cgroup version 1 dies only once it is thawed.
            let _ = freezer.thaw();
        }
        let gone = match killed {
            Ok(()) => launch::wait_exit(&self.target, Instant::now() + CURE_TIME),
            Err(rustix::io::Errno::SRCH) => Ok(true),
            Err(e) => Err(e.into()),
        };
        if matches!(gone, Ok(true)) {
            return Ok(self.report(started, written));
        }
        Err(DumpFailure {
            pid: self.request.pid,
            tasks: Tasks::Damaged,
            cause,
        })
    }
}
