//! What the thread owns, and what it is asked to do with it.

use std::ops::Range;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Instant;

use super::ServerError;
use super::compress::Pass;
use super::fill::Background;
use crate::FillStats;
use crate::changes::Change;
use crate::image::{Places, Reader};
use crate::maps;
use crate::runs::RunMap;
use crate::space::Space;
use crate::sys::keep::{self, Keeper};
use crate::sys::memory::{Nowhere, PageBuffer};
use crate::sys::uffd::Uffd;
use crate::working_set::PageOf;

/// What a thread begins with.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) directory: PathBuf,
    pub(crate) page: u64,
    /// Identity of the pages file.
    pub(crate) image: u64,
    pub(crate) sums: Arc<Vec<u64>>,
    /// Where the content of slots is.
    pub(crate) places: Arc<RwLock<Places>>,
}

/// An address space and its userfaultfd.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) space: Space,
    pub(super) uffd: Uffd,
    /// Readable when its process ends.
    pub(super) process: Option<OwnedFd>,
    /// What was done to it, as it was read. Its space knows nothing of that yet, since more may be on its way.
    pub(super) reported: Vec<Change>,
    pub(super) gone: bool,
}

/// See the module above.
#[derive(Debug)]
pub(super) enum Mode {
    Guard,
    /// With the moment of the last event.
    Moving(Instant),
    Filling(Background),
    Failed,
}

/// A fault that is not answered yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fault {
    pub(super) descriptor: RawFd,
    pub(super) address: u64,
    pub(super) write: bool,
    pub(super) since: Instant,
}

/// Owned by the thread.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(super) directory: PathBuf,
    pub(super) page: u64,
    pub(super) reader: Reader,
    pub(super) keeper: Option<Keeper>,
    pub(super) held: Vec<Held>,
    pub(super) mode: Mode,
    /// Compresses the image, in `Guard`.
    pub(super) pass: Option<Pass>,
    pub(super) waiting: Vec<Fault>,
    /// One page: for faults.
    pub(super) single: PageBuffer,
    pub(super) zeros: PageBuffer,
    pub(super) nowhere: Nowhere,
    /// Many pages: while filling in the background.
    pub(super) chunk: Option<PageBuffer>,
    pub(super) stats: FillStats,
    pub(super) faults: Vec<PageOf>,
    pub(super) failure: Option<ServerError>,
    /// There is nothing more to do.
    pub(super) over: bool,
}

/// A space as it is seen from outside.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) pid: i32,
    pub(crate) missing: RunMap,
}

impl Worker {
    /// To be made in a thread with a descriptor table of its own.
    pub(super) fn new(start: Start) -> Result<Self, ServerError> {
        let failed = ServerError::system;
        let keeper = Keeper::start().map_err(failed("start the keeper of descriptors", None))?;
        let Start {
            directory,
            page,
            image,
            sums,
            places,
        } = start;
        let bytes = page as usize;
        Ok(Self {
            reader: Reader::open(&directory, page, image, sums, places)?,
            directory,
            page,
            keeper: Some(keeper),
            held: Vec::new(),
            mode: Mode::Guard,
            pass: None,
            waiting: Vec::new(),
            single: PageBuffer::new(bytes).map_err(failed("get memory", None))?,
            zeros: PageBuffer::new(bytes).map_err(failed("get memory", None))?,
            nowhere: Nowhere::new().map_err(failed("get memory", None))?,
            chunk: None,
            stats: FillStats::default(),
            faults: Vec::new(),
            failure: None,
            over: false,
        })
    }

    pub(super) fn keeper(&self) -> i32 {
        self.keeper.as_ref().map_or(0, Keeper::pid)
    }

    /// Takes a copy of descriptor `number` of this program's own table, a fresh userfaultfd of process `pid`.
    pub(crate) fn adopt(&mut self, pid: i32, number: RawFd) -> Result<(), ServerError> {
        let failed = |operation| ServerError::system(operation, Some(pid));
        let process = keep::pidfd_open(pid).map_err(failed("get a handle of"))?;
        let uffd = keep::pidfd_open(std::process::id().cast_signed())
            .and_then(|owner| keep::pidfd_getfd(owner, number))
            .map_err(failed("take the userfaultfd of"))
            .map(Uffd::from)?;
        uffd.handshake()
            .map_err(failed("set up the userfaultfd of"))?;
        let space = Space::new(pid, self.page);
        self.hold(space, uffd, Some(process));
        Ok(())
    }

    pub(super) fn hold(&mut self, space: Space, uffd: Uffd, process: Option<OwnedFd>) {
        self.held.push(Held {
            space,
            uffd,
            process,
            reported: Vec::new(),
            gone: false,
        });
    }

    /// Processes that have left their address space while memory was missing, for another program, are not its processes
    /// any more. All threads have been stopped, or what is found is no more true than before.
    pub(crate) fn forget_strangers(&mut self) {
        for held in &mut self.held {
            let missing = held.space.missing().iter().next();
            if let (Some(pid), Some(run)) = (held.space.pid, missing)
                && !maps::is_armed(pid, run.start).unwrap_or(false)
            {
                held.space.pid = None;
            }
        }
    }

    /// What is missing of each process that is still there. None when there are address spaces
    /// whose process is not known.
    pub(crate) fn views(&mut self) -> Option<Vec<View>> {
        self.drop_dead();
        self.held
            .iter()
            .map(|held| {
                Some(View {
                    pid: held.space.pid?,
                    missing: held.space.missing().clone(),
                })
            })
            .collect()
    }

    /// The image is complete with this.
    pub(crate) fn set_known(&mut self, sums: Arc<Vec<u64>>, known: Vec<(i32, RunMap)>) {
        self.reader.set_sums(sums);
        for (pid, known) in known {
            if let Some(held) = self
                .held
                .iter_mut()
                .find(|held| held.space.pid == Some(pid))
            {
                held.space.set_known(known);
            }
        }
    }

    /// Registers ranges of a process. Returns those that the kernel refuses.
    pub(crate) fn register(&mut self, pid: i32, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let held = self.held.iter().find(|held| held.space.pid == Some(pid));
        let mut refused = ranges.to_vec();
        refused.retain(|range| held.is_none_or(|held| held.uffd.register(range).is_err()));
        refused
    }

    /// Pages are about to be taken away, or have been. False after a failure, which stays one: nobody reads
    /// events any more, and one that is read later would be taken for the program's own.
    pub(crate) fn set_moving(&mut self, moving: bool) -> bool {
        self.stop_compressing();
        if matches!(self.mode, Mode::Failed) {
            return false;
        }
        self.mode = if moving {
            Mode::Moving(Instant::now())
        } else {
            Mode::Guard
        };
        true
    }

    /// Stops filling in the background. Returns what was done since the fill began; none when it
    /// is over.
    pub(crate) fn guard(&mut self) -> Option<(FillStats, Vec<PageOf>)> {
        if matches!(self.mode, Mode::Failed) || self.over {
            return None;
        }
        self.mode = Mode::Guard;
        self.chunk = None;
        let stats = std::mem::take(&mut self.stats);
        Some((stats, std::mem::take(&mut self.faults)))
    }

    /// Bytes that are missing, of all address spaces.
    pub(crate) fn missing_bytes(&self) -> u64 {
        let missing = |held: &Held| held.space.missing().bytes();
        self.held.iter().map(missing).sum()
    }

    /// Gives everything up. Only when no process of these address spaces will run any more.
    pub(crate) fn abandon(&mut self) {
        self.held.clear();
        self.over = true;
    }

    /// Gives up address spaces where nothing is missing, if that is all of them.
    pub(crate) fn end_if_idle(&mut self) -> bool {
        self.over = self.held.iter().all(|held| held.space.missing().is_empty());
        self.over
    }

    /// Fills nothing any more, and gives nothing up.
    pub(super) fn fail(&mut self, error: ServerError) {
        if !matches!(self.mode, Mode::Failed) {
            self.failure = Some(error);
            self.mode = Mode::Failed;
            self.waiting.clear();
        }
    }
}
