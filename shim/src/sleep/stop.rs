//! Cold sleep: from a container that stands still to one whose processes have ended, and from one
//! that was started anew to one that can be connected to.
//!
//! Nothing is kept but what is outside of its processes: its files, its streams, its cgroup.

use std::{
    collections::BTreeSet,
    io,
    os::fd::OwnedFd,
    thread,
    time::{Duration, Instant},
};

use podmotion_criu_driver::{DumpControl, Freezer};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{
    facts::{Facts, FactsError, Known},
    look::{self, LookError},
    placeholder::PlaceholderError,
    pod::Seat,
    still::Target,
    trouble::Trouble,
};
use crate::gate::{
    Ends,
    sockets::{self, Wanted},
};

/// Time for killed processes to go.
const END: Duration = Duration::from_secs(10);

/// Time for threads that were thawed to run again. Nothing tells when they do.
const LEAVES_FREEZER: Duration = Duration::from_millis(50);

/// Between two looks at what a starting container listens on: the kernel has no event for that.
const LOOK: Duration = Duration::from_millis(5);

/// A container whose processes have ended.
#[derive(Debug)]
pub struct Stopped {
    /// From the decision until they were gone.
    pub total: Duration,
    /// Ports that wake it.
    pub ports: BTreeSet<u16>,
    /// Ports that it listened on.
    pub listened: BTreeSet<u16>,
    /// Bytes of anonymous memory that it had.
    pub memory_bytes: u64,
}

/// What a stop works with.
pub struct Attempt<'a> {
    /// The container.
    pub target: Target<'a>,
    /// Puts a placeholder into its cgroups, where systemd would remove them.
    pub enter_cgroups: Option<&'a dyn Fn() -> Result<(), PlaceholderError>>,
    /// How long its processes have after a TERM.
    pub timeout: Duration,
    /// Gives the stop up, until they are told.
    pub control: &'a DumpControl,
}

impl Attempt<'_> {
    /// Blocks until the container's processes are gone or it runs on. Held packets stay held.
    pub fn run(&self) -> Result<Stopped, Trouble> {
        let started = Instant::now();
        let memory_bytes = self.target.facts.cgroup.anonymous_memory();
        let (ports, listened) = self
            .target
            .stand_still(Ends::Gone, |freezer, ports| self.end(freezer, ports))?;
        Ok(Stopped {
            total: started.elapsed(),
            ports,
            listened,
            memory_bytes: memory_bytes.unwrap_or_default(),
        })
    }

    fn end(
        &self,
        freezer: &Freezer,
        ports: BTreeSet<u16>,
    ) -> Result<(BTreeSet<u16>, BTreeSet<u16>), Trouble> {
        let Target {
            facts, pid, seat, ..
        } = self.target;
        let sockets = seat.sockets(&look::held(facts)?, Wanted::All);
        let sockets = sockets.map_err(LookError::from)?;
        if !sockets.flows.is_empty() {
            return Err(Trouble::Traffic("a connection is open"));
        }
        if self.control.aborted() {
            return Err(Trouble::Aborted);
        }
        let init = Init::open(pid).map_err(Trouble::Terminate)?;
        self.enter_cgroups.map_or(Ok(()), |enter| enter())?;
        freezer.thaw()?;
        // A signal for a process goes to its first thread if that can take it, and else to any: a
        // program whose first thread sleeps until it gets one, as Python's do, would not notice.
        thread::sleep(LEAVES_FREEZER);
        // From here on there is no way back.
        init.terminate().map_err(Trouble::Terminate)?;
        if !init.ends_within(self.timeout).map_err(Trouble::Terminate)? {
            log::warn!(
                "{}: still there {:?} after TERM, killed",
                facts.id,
                self.timeout
            );
            init.kill().map_err(Trouble::Terminate)?;
            init.ends_within(END).map_err(Trouble::Terminate)?;
        }
        Ok((ports, sockets.ports()))
    }
}

/// The first process of a container. Its PID namespace goes with it.
struct Init {
    /// Readable once it has ended. Its pid may be another's then: the reaper waits for it meanwhile.
    end: OwnedFd,
}

impl Init {
    fn open(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let end = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { end })
    }

    fn terminate(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.end, Signal::TERM)?)
    }

    fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.end, Signal::KILL)?)
    }

    fn ends_within(&self, time: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).ok();
            let mut fds = [PollFd::new(&self.end, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(cause) => return Err(cause.into()),
            }
        }
    }
}

/// What is known of a container that was started anew.
pub struct Started {
    /// It.
    pub facts: Facts,
    /// Ports on which it still does not listen.
    pub missing: BTreeSet<u16>,
}

/// What a container that was started anew is waited for with.
pub struct Start<'a> {
    /// It.
    pub known: Known,
    /// Its place at the gate.
    pub seat: &'a Seat,
    /// Ports that it listened on before.
    pub ports: &'a BTreeSet<u16>,
    /// The longest time.
    pub timeout: Duration,
}

/// Why it cannot be told whether a container that was started anew listens.
#[derive(Debug, thiserror::Error)]
pub enum StartTrouble {
    /// It cannot be described.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// Its sockets cannot be told.
    #[error(transparent)]
    Look(#[from] LookError),
}

impl Start<'_> {
    /// Blocks until the container listens on all of its ports, has ended, or has had its time.
    pub fn wait(self) -> Result<Started, StartTrouble> {
        let deadline = Instant::now() + self.timeout;
        let facts = Facts::gather(self.known)?;
        loop {
            let pids = look::processes(&facts)?;
            let held = sockets::held(&pids).map_err(LookError::Descriptors)?;
            let sockets = self
                .seat
                .sockets(&held, Wanted::Own)
                .map_err(LookError::from)?;
            let missing = self.ports - &sockets.ports();
            let ended = pids.is_empty();
            if missing.is_empty() || ended || Instant::now() >= deadline {
                return Ok(Started { facts, missing });
            }
            thread::sleep(LOOK);
        }
    }
}
