//! Deep sleep: from a container that stands still to a checkpoint.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use podmotion_criu_driver::{
    Absent, Criu, DumpControl, DumpFailure, DumpReport, DumpRequest, Error, ExternalMount, Tasks,
    Veto, Written, connections, images,
};
use podmotion_model::{chain::Chain, manifest::Platform, value::Share};

use super::{
    look, manifest, placeholder::PlaceholderError, quota, signals::Signals, status::Identity,
    still::Target, trouble::Trouble, turn,
};
use crate::gate::{Ends, Flow, Standstill};

/// A container that sleeps deep.
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
    pub target: Target<'a>,
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
    /// Bytes of memory from which on the restore of a single process is lazy.
    pub lazy_threshold: u64,
    /// Time for CRIU.
    pub timeout: Duration,
    /// What all images may take together.
    pub quota: Share,
    /// Gives the dump up.
    pub control: &'a DumpControl,
    /// Everything but the end of the processes, to see whether it is possible.
    pub rehearsal: bool,
}

/// Written, and not wanted: the processes are to run on.
#[derive(Debug, thiserror::Error)]
#[error("a rehearsal")]
struct Rehearsal(Written);

/// What a rehearsal has written that went well to its end.
fn rehearsed(failure: &DumpFailure) -> Option<Written> {
    let Error::Vetoed(veto) = &failure.cause else {
        return None;
    };
    let Rehearsal(written) = veto.downcast_ref()?;
    (failure.tasks == Tasks::Running).then_some(*written)
}

impl Attempt<'_> {
    /// Blocks until the container sleeps or runs on. What becomes of the images is the lifecycle's
    /// decision.
    pub fn run(&self) -> Result<Fallen, Trouble> {
        let started = Instant::now();
        let _turn = turn::take(self.images, self.control)?;
        let needed = self.target.facts.cgroup.anonymous_memory();
        let _reserved = quota::reserve(self.images, needed.unwrap_or_default(), self.quota)?;
        self.target.stand_still(Ends::Gone, |_, ports| {
            Signals::at_standstill(&look::processes(self.target.facts)?)?;
            self.dump(started, ports, None)
        })
    }

    /// Of a container that stands still, and whose memory is in its processes but for what is
    /// `absent`.
    pub fn dump(
        &self,
        started: Instant,
        ports: BTreeSet<u16>,
        absent: Option<&dyn Absent>,
    ) -> Result<Fallen, Trouble> {
        if self.control.aborted() {
            return Err(Trouble::Aborted);
        }
        images::create(self.images)?;
        let mounts = self.target.facts.mounts(self.target.pid)?;
        let subject = self.target.facts.subject(&mounts)?;
        let mut request = DumpRequest::new(self.target.pid, self.images, self.images);
        request.timeout = self.timeout;
        request.absent = absent;
        // CRIU 4.2 loses processes that share memory copy-on-write when they are restored lazily.
        let lazy = |written: Written| {
            written.memory_bytes >= self.lazy_threshold && written.address_spaces == 1
        };
        // While the processes are still there: a checkpoint that has no manifest is none.
        let commit = |written: Written| {
            if !self.rehearsal {
                self.enter_cgroups.map_or(Ok(()), |enter| enter())?;
            }
            let checkpoint = manifest::Checkpoint {
                platform: self.platform,
                identity: self.identity,
                ports: &ports,
                memory_bytes: written.memory_bytes,
                lazy: lazy(written),
            };
            checkpoint.complete(self.images)?;
            match self.rehearsal {
                // CRIU takes the way that it takes with `leave_running`: the one way on which all is
                // put back, which every sleep that is given up takes too.
                true => Err(Veto::from(Rehearsal(written))),
                false => Ok(()),
            }
        };
        let dumped = self.criu.dump(&subject, &request, self.control, &commit);
        let report = dumped.map_err(|failure| match rehearsed(&failure) {
            Some(written) => Trouble::Rehearsed {
                written,
                took: started.elapsed(),
            },
            None => failure.into(),
        })?;
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
            log::warn!(
                "{}: keepalives stay unanswered: {cause}",
                self.target.facts.id
            );
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
        if let Err(error) = self.target.seat.answer_keepalives(&connections) {
            failed(&error);
        }
    }
}
