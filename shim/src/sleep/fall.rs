//! Falling asleep: from a running container to a checkpoint, or back to running.
//!
//! ```text
//!  hold packets -> freeze -> look at the sockets -> hold their connections -> look again -> CRIU
//!                               |  something is on its way in              |
//!                               +-------------> thaw, Trouble::Traffic <---+
//! ```
//!
//! What arrives before the hold is seen by the looks (a connection not yet accepted, unread or
//! unacknowledged data): such a container is not idle. What arrives after it waits in the gate.
//! Between the two nothing is lost.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use podmotion_criu_driver::{
    Criu, DumpControl, DumpFailure, DumpReport, DumpRequest, ExternalMount, Freezer, Tasks, Veto,
    Written, connections,
    freezer::FreezerError,
    images::{self, ImagesError},
};
use podmotion_model::manifest::Platform;

use super::{
    facts::{Facts, FactsError},
    look::{self, LookError},
    manifest,
    placeholder::PlaceholderError,
    pod::Seat,
    status::Identity,
};
use crate::{
    chain::Chain,
    gate::{Flow, GateError, Standstill},
};

/// Why a container did not fall asleep.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Somebody was about to use it.
    #[error("{0}")]
    Traffic(&'static str),
    /// The dump was given up because something wants the container.
    #[error("given up, the container is wanted")]
    Aborted,
    /// It has no place at the gate.
    #[error("the container has no place at its pod's gate")]
    NotSettled,
    /// CRIU does not work here.
    #[error(transparent)]
    NoCriu(podmotion_criu_driver::Error),
    /// Its cgroup could not be kept from systemd.
    #[error(transparent)]
    Placeholder(#[from] PlaceholderError),
    /// The system has no descriptor left to control the dump with.
    #[error("prepare the dump")]
    Control(#[source] std::io::Error),
    /// The container cannot be described.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// The gate cannot hold its packets.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// Its cgroup cannot be frozen or thawed.
    #[error(transparent)]
    Freezer(#[from] FreezerError),
    /// Its sockets cannot be told.
    #[error(transparent)]
    Look(#[from] LookError),
    /// The directory for the images could not be made or sealed.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// CRIU refused or failed, or its images could not be completed.
    #[error(transparent)]
    Dump(#[from] DumpFailure),
}

impl Trouble {
    /// What is left of the container.
    pub fn tasks(&self) -> Tasks {
        match self {
            Self::Dump(failure) => failure.tasks,
            _ => Tasks::Running,
        }
    }

    /// Not a failure: the container was wanted.
    pub fn is_traffic(&self) -> bool {
        match self {
            Self::Traffic(_) | Self::Aborted => true,
            Self::Dump(failure) => {
                matches!(failure.cause, podmotion_criu_driver::Error::Aborted)
            }
            _ => false,
        }
    }
}

/// A container that is asleep.
#[derive(Debug)]
pub struct Fallen {
    /// CRIU's figures.
    pub report: DumpReport,
    /// From the decision until its memory was free.
    pub total: Duration,
    /// Ports that wake it.
    pub ports: BTreeSet<u16>,
    /// Its external mounts, for the restore.
    pub mounts: Vec<ExternalMount>,
    /// It has so much memory that it is to run again before all of it is back.
    pub lazy: bool,
}

/// What a dump works with.
pub struct Attempt<'a> {
    /// The container.
    pub facts: &'a Facts,
    /// Its init process.
    pub pid: i32,
    /// Its place at the gate.
    pub seat: &'a Seat,
    /// Ports that wake it; those it listens on where there are none given.
    pub fixed_ports: Option<&'a BTreeSet<u16>>,
    /// How long a request without an answer keeps it awake.
    pub answer_wait: Option<Duration>,
    /// CRIU.
    pub criu: &'a Criu,
    /// Where the images go.
    pub images: &'a Path,
    /// Puts a placeholder into its cgroups, where systemd would remove them.
    pub enter_cgroups: Option<&'a dyn Fn() -> Result<(), PlaceholderError>>,
    /// The machine, for the manifest.
    pub platform: &'a Platform,
    /// Who the container is, for the manifest.
    pub identity: &'a Identity,
    /// Bytes of memory from which on the restore is lazy.
    pub lazy_threshold: u64,
    /// Time for CRIU.
    pub timeout: Duration,
    /// Gives the dump up.
    pub control: &'a DumpControl,
    /// For the task that reads held packets.
    pub runtime: tokio::runtime::Handle,
}

/// How long the freezer may take; a container in the middle of a long uninterruptible system call
/// is not idle.
const FREEZE: Duration = Duration::from_secs(2);

impl Attempt<'_> {
    /// Blocks until the container sleeps or runs on. The gate and the images are left as they are:
    /// what becomes of them is the lifecycle's decision.
    pub fn run(&self) -> Result<Fallen, Trouble> {
        let started = Instant::now();
        images::create(self.images)?;
        self.seat.hold(&self.runtime)?;
        let freezer = Freezer::new(&self.facts.freezer)?;
        let outcome = freezer
            .freeze(FREEZE)
            .map_err(Trouble::from)
            .and_then(|()| {
                let ports = self.hold_connections()?;
                self.dump(started, ports)
            });
        if outcome.is_err() {
            // CRIU's driver thaws what it gave up; this is for what failed before it.
            if let Err(error) = freezer.thaw() {
                log::warn!("thaw {}: {}", self.facts.id, Chain(&error));
            }
        }
        outcome
    }

    fn hold_connections(&self) -> Result<BTreeSet<u16>, Trouble> {
        let first = look::sockets(self.facts, self.seat)?;
        let ports = self.fixed_ports.cloned().unwrap_or_else(|| first.ports());
        self.seat.set_ports(&ports)?;
        self.seat.add_flows(&first.flows)?;
        // What came in before the connections were held is in their queues now.
        let second = look::sockets(self.facts, self.seat)?;
        if second.pending > 0 {
            return Err(Trouble::Traffic("a connection is waiting to be accepted"));
        }
        if second.queued > 0 {
            return Err(Trouble::Traffic("a connection has data under way"));
        }
        let waits = |age| self.answer_wait.is_some_and(|limit| age < limit);
        if second.unanswered.is_some_and(waits) {
            return Err(Trouble::Traffic("a request has no answer yet"));
        }
        if second.flows.len() != first.flows.len() {
            return Err(Trouble::Traffic("a connection came or went"));
        }
        Ok(ports)
    }

    fn dump(&self, started: Instant, ports: BTreeSet<u16>) -> Result<Fallen, Trouble> {
        if self.control.aborted() {
            return Err(Trouble::Aborted);
        }
        let mounts = self.facts.mounts(self.pid)?;
        let subject = self.facts.subject(&mounts)?;
        let mut request = DumpRequest::new(self.pid, self.images, self.images);
        request.timeout = self.timeout;
        let lazy = |written: Written| written.memory_bytes >= self.lazy_threshold;
        // While the processes are still there: a checkpoint that has no manifest is none.
        let commit = |written: Written| {
            self.enter_cgroups.map_or(Ok(()), |enter| enter())?;
            let checkpoint = manifest::Checkpoint {
                platform: self.platform,
                identity: self.identity,
                ports: &ports,
                memory_bytes: written.memory_bytes,
                lazy: lazy(written),
            };
            checkpoint.complete(self.images).map_err(Veto::from)
        };
        let report = self.criu.dump(&subject, &request, self.control, &commit)?;
        let fallen = Fallen {
            total: started.elapsed(),
            lazy: lazy(report.written),
            report,
            ports,
            mounts,
        };
        self.answer_keepalives();
        Ok(fallen)
    }

    /// Without this a peer that sends keepalives ends its connection when the container sleeps for
    /// longer than some minutes; that is no reason to wake it now.
    fn answer_keepalives(&self) {
        let failed = |error: &dyn std::error::Error| {
            let cause = Chain(error);
            log::warn!("{}: keepalives stay unanswered: {cause}", self.facts.id);
        };
        let dumped = match connections::read(self.images) {
            Ok(dumped) => dumped,
            Err(error) => return failed(&error),
        };
        let connections: Vec<_> = dumped
            .iter()
            .map(|connection| {
                let at = Standstill {
                    rcv_nxt: connection.rcv_nxt,
                    snd_nxt: connection.snd_nxt,
                    window: connection.window,
                };
                (Flow::new(connection.local, connection.remote), at)
            })
            .collect();
        if let Err(error) = self.seat.answer_keepalives(&connections) {
            failed(&error);
        }
    }
}
