//! The states of the memory of one container's processes, as types.
//!
//! ```text
//!            move_out         begin_wake          wait             wait
//!   Pager ------------> Moved ----------> Waking ------> Filling ------> Pager
//!     ^                   |                 |            ^ |   |
//!     |                   +-----------------|------------+ |   +--> FillFailed: the processes must be killed
//!     |                         serve       |              |
//!     +-------------------------------------|--------------+
//!                    pause                  +--> FillFailed
//! ```
//!
//! Each step takes the state before it, so that nobody goes on with a fill that failed.

mod waking;

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::huge::HugePages;
use crate::image::{ImageError, Pages};
use crate::out::OutError;
use crate::runs::RunMap;
use crate::server::{Complete, Outcome, Server, ServerError, Start, Starting};
use crate::stats::{FillPolicy, FillStats, OutStats, StayPolicy};
use crate::sys::page_size;
use crate::watch::Watch;
use crate::working_set::{PageOf, WorkingSet};

pub use waking::{Waking, Woken};

/// Memory that is filled before a wake at most, in bytes.
const WORKING_SET_BUDGET: u64 = 64 << 20;

/// The image of some processes whose memory is in place, or is still being answered for after
/// [`Filling::pause`]. Keeps what the image has for comparison at the next sleep.
#[derive(Debug)]
pub struct Pager {
    pub(crate) directory: PathBuf,
    pub(crate) page: u64,
    pub(crate) pages: Pages,
    /// Where pages were when memory was last complete. What has happened since does not matter:
    /// it only says what to compare with.
    pub(crate) known: HashMap<i32, RunMap>,
    pub(crate) working_set: WorkingSet,
    pub(crate) server: Option<Server>,
    /// For a move that comes soon.
    pub(crate) starting: Option<Starting>,
    pub(crate) huge: Vec<HugePages>,
    pub(crate) stay: StayPolicy,
    /// Of the processes as they run now.
    pub(crate) watch: Option<Watch>,
}

/// Memory is out. Faults are answered, but nothing is filled that nobody asks for.
///
/// Dropping it leaves the processes as they are: faults are answered until they end.
#[derive(Debug)]
pub struct Moved {
    pager: Pager,
    server: Server,
    stats: OutStats,
    plan: Vec<(i32, Range<u64>)>,
}

/// Memory is being filled. Readable ([`AsFd`]) once that has ended one way or the other.
///
/// Dropping it does not stop the fill.
#[derive(Debug)]
pub struct Filling {
    pager: Pager,
    server: Server,
}

/// How a pager goes on when no sleep follows a [pause](Filling::pause).
#[derive(Debug)]
pub enum Resumed {
    /// Memory is being filled.
    Filling(Filling),
    /// Nothing was missing.
    Complete(Pager),
}

/// Memory could not be moved out.
#[derive(Debug)]
pub enum NotMoved {
    /// The processes are as they were.
    Unchanged {
        /// To try again with.
        pager: Box<Pager>,
        /// Why.
        error: OutError,
    },
    /// The processes must be killed.
    Lost(FillFailed),
}

/// Memory is missing that cannot be filled. Whoever touches it waits, and can be killed; nobody
/// reads zeros. The processes must be killed.
///
/// Dropping it changes nothing for them: the descriptors are kept until the last one has ended.
#[derive(Debug, thiserror::Error)]
#[error("memory cannot be filled again")]
pub struct FillFailed {
    #[source]
    error: ServerError,
    server: Option<Server>,
}

impl Pager {
    /// Begins an image in `directory`, which exists and is for root alone. What an earlier image
    /// left there is replaced, but for the working set.
    ///
    /// # Errors
    /// When the image cannot be made.
    pub fn create(directory: &Path) -> Result<Self, ImageError> {
        let page = page_size();
        let budget = (WORKING_SET_BUDGET / page) as usize;
        Ok(Self {
            directory: directory.to_owned(),
            page,
            pages: Pages::create(directory, page)?,
            known: HashMap::new(),
            // Advice: one that cannot be read is as good as none.
            working_set: WorkingSet::read(directory, page, budget)
                .unwrap_or_else(|_| WorkingSet::new(page, budget)),
            server: None,
            starting: None,
            huge: Vec::new(),
            stay: StayPolicy::default(),
            watch: None,
        })
    }

    /// Says how much of what wakes need is left in memory from now on.
    pub fn set_stay(&mut self, policy: StayPolicy) {
        self.stay = policy;
    }

    /// Begins what the next [`move_out`](Self::move_out) needs and does not depend on the processes' standing still.
    /// Either that or [`stand_down`](Self::stand_down) follows.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn get_ready(&mut self) -> Result<(), ServerError> {
        if self.server.is_none() && self.starting.is_none() {
            self.starting = Some(self.start_server()?);
        }
        Ok(())
    }

    /// No move follows. Waits until what was begun has ended.
    pub fn stand_down(&mut self) {
        self.starting = None;
        self.watch = None;
    }

    /// The directory of the image.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Bytes that the image takes on its file system.
    ///
    /// # Errors
    /// When the file system does not tell.
    pub fn image_bytes(&self) -> Result<u64, ImageError> {
        self.pages.disk_bytes()
    }

    /// Goes on filling. To be called when no sleep follows a pause, also because
    /// [`move_out`](Self::move_out) failed.
    ///
    /// # Errors
    /// When the thread that fills is gone. The processes must be killed.
    pub fn resume(mut self, policy: FillPolicy) -> Result<Resumed, FillFailed> {
        self.rest();
        let Some(server) = self.server.take() else {
            return Ok(Resumed::Complete(self));
        };
        match server.fill(policy) {
            Ok(()) => Ok(Resumed::Filling(Filling {
                pager: self,
                server,
            })),
            Err(error) => Err(FillFailed::new(error, server)),
        }
    }

    /// Starts the thread that answers for the image.
    pub(crate) fn start_server(&self) -> Result<Starting, ServerError> {
        Server::start(Start {
            directory: self.directory.clone(),
            page: self.page,
            image: self.pages.id(),
            sums: self.pages.sums().clone(),
            places: self.pages.places().clone(),
        })
    }

    /// Address spaces that were forked while memory was missing have no process that is known, nor have those whose
    /// process has left them; they are filled before anything is moved again.
    pub(crate) fn finish_forks(&mut self) -> Result<(), FillFailed> {
        let Some(server) = self.server.take() else {
            return Ok(());
        };
        let are_known = server.call(|worker| {
            worker.forget_strangers();
            worker.views().is_some()
        });
        match are_known {
            Ok(true) => {
                self.server = Some(server);
                Ok(())
            }
            Ok(false) => {
                let outcome = match server.fill(FillPolicy::at_once()) {
                    Ok(()) => server.wait(),
                    Err(error) => Outcome::Failed(error),
                };
                self.settle(server, outcome).map(drop)
            }
            Err(error) => Err(FillFailed::new(error, server)),
        }
    }

    /// Ends the server when there is nothing that it answers for.
    pub(crate) fn rest(&mut self) {
        self.starting = None;
        if let Some(server) = self.server.take() {
            let idle = server.call(|worker| worker.end_if_idle());
            if matches!(idle, Ok(false)) {
                self.server = Some(server);
            }
        }
    }

    /// Takes in how a fill ended.
    pub(crate) fn settle(
        &mut self,
        server: Server,
        outcome: Outcome,
    ) -> Result<FillStats, FillFailed> {
        match outcome {
            Outcome::Complete(Complete {
                known,
                stats,
                faults,
            }) => {
                self.known = known.into_iter().collect();
                self.learn(&faults);
                Ok(stats)
            }
            Outcome::Failed(error) => Err(FillFailed::new(error, server)),
        }
    }

    fn learn(&mut self, faults: &[PageOf]) {
        self.working_set.learn(faults);
        // Advice: the one in memory is used all the same.
        let _ = self.working_set.write(&self.directory);
    }
}

impl Moved {
    /// `plan`: what a wake is to fill first.
    pub(crate) fn new(
        pager: Pager,
        server: Server,
        stats: OutStats,
        plan: Vec<(i32, Range<u64>)>,
    ) -> Self {
        Self {
            pager,
            server,
            stats,
            plan,
        }
    }

    pub(crate) fn parts(&self) -> (&Pager, &Server) {
        (&self.pager, &self.server)
    }

    /// Gives the pager back for another move, as [`Filling::pause`] does: what is missing need not be
    /// moved again, and faults are answered.
    pub fn again(mut self) -> Pager {
        self.pager.server = Some(self.server);
        self.pager
    }

    /// What moving out did.
    pub fn stats(&self) -> &OutStats {
        &self.stats
    }

    /// Pid of the process that keeps the descriptors, should this one be killed. It ends with the
    /// fill, or when the processes have ended.
    pub fn keeper(&self) -> i32 {
        self.server.keeper()
    }

    /// Bytes that [`begin_wake`](Self::begin_wake) fills at most before the processes run: what the last wakes
    /// have needed and is not in place.
    pub fn working_set_bytes(&self) -> u64 {
        let plan = self.plan.iter();
        plan.map(|(_, range)| range.end - range.start).sum()
    }

    /// Begins to fill. The processes may run from here on.
    ///
    /// # Errors
    /// When the thread that fills is gone. The processes must be killed.
    pub fn serve(self, policy: FillPolicy) -> Result<Filling, FillFailed> {
        match self.server.fill(policy) {
            Ok(()) => Ok(Filling {
                pager: self.pager,
                server: self.server,
            }),
            Err(error) => Err(FillFailed::new(error, self.server)),
        }
    }
}

impl AsFd for Filling {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.server.as_fd()
    }
}

impl Filling {
    /// Pid of the process that keeps the descriptors; see [`Moved::keeper`].
    pub fn keeper(&self) -> i32 {
        self.server.keeper()
    }

    /// Bytes that are still missing; 0 when the fill has ended.
    pub fn missing_bytes(&self) -> u64 {
        self.server
            .call(|worker| worker.missing_bytes())
            .unwrap_or(0)
    }

    /// Waits until all memory is back, in huge pages where it was in such. Nothing is registered any more then.
    ///
    /// # Errors
    /// When the image cannot be used. The processes must be killed.
    pub fn wait(mut self) -> Result<(Pager, FillStats), FillFailed> {
        let outcome = self.server.wait();
        let mut stats = self.pager.settle(self.server, outcome)?;
        // Nothing of it is registered any more, which the kernel asks for.
        stats.huge_bytes = self.pager.huge.drain(..).map(|huge| huge.restore()).sum();
        Ok((self.pager, stats))
    }

    /// Stops filling in the background, for the next sleep: what is still missing need not be
    /// moved again. Faults are answered.
    ///
    /// # Errors
    /// When the fill has failed. The processes must be killed.
    pub fn pause(mut self) -> Result<(Pager, FillStats), FillFailed> {
        match self.server.call(|worker| worker.guard()) {
            Ok(Some((stats, faults))) => {
                self.pager.learn(&faults);
                self.pager.server = Some(self.server);
                Ok((self.pager, stats))
            }
            // It has ended meanwhile.
            Ok(None) | Err(_) => self.wait(),
        }
    }
}

impl NotMoved {
    pub(crate) fn unchanged(pager: Pager, error: OutError) -> Self {
        Self::Unchanged {
            pager: Box::new(pager),
            error,
        }
    }
}

impl FillFailed {
    fn new(error: ServerError, server: Server) -> Self {
        Self {
            error,
            server: Some(server),
        }
    }

    /// What went wrong.
    pub fn error(&self) -> &ServerError {
        &self.error
    }

    /// Gives the descriptors up at once. Only when no process whose memory is missing will ever
    /// run again.
    pub fn abandon(mut self) {
        if let Some(server) = self.server.take() {
            // A thread that is gone has nothing to give up.
            let _ = server.call(|worker| worker.abandon());
        }
    }
}
