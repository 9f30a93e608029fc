//! What the thread owns, and what it is asked to do with it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::ServerError;
use super::fill::Background;
use crate::FillStats;
use crate::image::Reader;
use crate::journal::{Identity, Journal};
use crate::runs::RunMap;
use crate::space::Space;
use crate::sys::keep::{self, Keeper};
use crate::sys::memory::PageBuffer;
use crate::sys::uffd::Uffd;
use crate::working_set::PageOf;

/// What a thread begins with.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) directory: PathBuf,
    pub(crate) page: u64,
    /// Identity of the pages file.
    pub(crate) image: u64,
    /// Generation of the index in force.
    pub(crate) generation: u64,
    pub(crate) sums: Arc<Vec<u64>>,
}

/// An address space and its userfaultfd.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) space: Space,
    pub(super) uffd: Uffd,
    /// Readable when its process ends.
    pub(super) process: Option<OwnedFd>,
    pub(super) gone: bool,
}

/// See the module above.
#[derive(Debug)]
pub(super) enum Mode {
    Guard,
    Moving,
    Filling(Background),
    Failed,
}

/// A fork, by the descriptors of both address spaces.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fork {
    pub(super) parent: RawFd,
    pub(super) child: RawFd,
}

/// A fault that cannot be answered before an event has been read.
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
    pub(super) start: Start,
    pub(super) reader: Reader,
    pub(super) journal: Journal,
    next_journal: Option<(u64, Journal)>,
    /// Forks that may have been reported before something that came before them.
    pub(super) forks: Vec<Fork>,
    pub(super) keeper: Option<Keeper>,
    pub(super) held: Vec<Held>,
    pub(super) mode: Mode,
    pub(super) waiting: Vec<Fault>,
    /// One page: for faults.
    pub(super) single: PageBuffer,
    pub(super) zeros: PageBuffer,
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
        let sums = Arc::clone(&start.sums);
        let page = start.page as usize;
        Ok(Self {
            reader: Reader::open(&start.directory, start.page, start.image, sums)?,
            journal: journal(&start, start.generation, &keeper)?,
            next_journal: None,
            forks: Vec::new(),
            start,
            keeper: Some(keeper),
            held: Vec::new(),
            mode: Mode::Guard,
            waiting: Vec::new(),
            single: PageBuffer::new(page).map_err(failed("get memory", None))?,
            zeros: PageBuffer::new(page).map_err(failed("get memory", None))?,
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

    /// Takes descriptor `number` of process `pid`, a fresh userfaultfd.
    pub(crate) fn adopt(&mut self, pid: i32, number: RawFd) -> Result<(), ServerError> {
        let failed = |operation| ServerError::system(operation, Some(pid));
        let process = keep::pidfd_open(pid).map_err(failed("get a handle of"))?;
        let uffd = keep::pidfd_getfd(&process, number)
            .map_err(failed("take the userfaultfd of"))
            .map(Uffd::from)?;
        uffd.handshake()
            .map_err(failed("set up the userfaultfd of"))?;
        self.journal.adopted(pid, uffd.as_fd().as_raw_fd());
        let space = Space::new(pid, self.start.page);
        self.hold(space, uffd, Some(process));
        Ok(())
    }

    /// Goes on with the userfaultfds that another filler left in its keeper, by their numbers
    /// there.
    pub(crate) fn take_over(
        &mut self,
        keeper: i32,
        keeper_start: u64,
        spaces: BTreeMap<RawFd, Space>,
    ) -> Result<(), ServerError> {
        let handle = keep::pidfd_open(keeper)
            .map_err(ServerError::system("get a handle of", Some(keeper)))?;
        if start_time(keeper).ok() != Some(keeper_start) {
            return Err(ServerError::Ended);
        }
        for (number, space) in spaces {
            let pid = space.pid;
            let failed = |operation| ServerError::system(operation, pid);
            let uffd = match keep::pidfd_getfd(&handle, number) {
                // Closed: the address space was complete, or gone.
                Err(e) if e.raw_os_error() == Some(libc::EBADF) => continue,
                uffd => uffd
                    .map_err(failed("take from the keeper the userfaultfd of"))
                    .map(Uffd::from)?,
            };
            // The address space is gone; or was, and its number is another descriptor's by now.
            if !uffd.is_alive() {
                continue;
            }
            // Who waits was reported to the one before.
            if let Err(e) = uffd.wake_all()
                && uffd.is_alive()
            {
                return Err(failed("wake")(e));
            }
            if let Some(pid) = pid {
                self.journal.adopted(pid, uffd.as_fd().as_raw_fd());
            }
            // A process that has ended leaves its address space to be looked at later.
            let process = pid.and_then(|pid| keep::pidfd_open(pid).ok());
            self.hold(space, uffd, process);
        }
        Ok(())
    }

    pub(super) fn hold(&mut self, space: Space, uffd: Uffd, process: Option<OwnedFd>) {
        self.held.push(Held {
            space,
            uffd,
            process,
            gone: false,
        });
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

    /// An index of this generation is about to be put in place: there is a journal for it before.
    /// Events go to the old one until [`set_index`](Self::set_index); processes that are stopped
    /// cause none.
    pub(crate) fn prepare_index(&mut self, generation: u64) -> Result<(), ServerError> {
        let Some(keeper) = &self.keeper else {
            return Err(ServerError::Ended);
        };
        let mut next = journal(&self.start, generation, keeper)?;
        for held in &self.held {
            if let Some(pid) = held.space.pid {
                next.adopted(pid, held.uffd.as_fd().as_raw_fd());
            }
        }
        self.next_journal = Some((generation, next));
        Ok(())
    }

    /// The index that was prepared is in force.
    pub(crate) fn set_index(&mut self, sums: Arc<Vec<u64>>, known: Vec<(i32, RunMap)>) {
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
        if let Some((generation, journal)) = self.next_journal.take() {
            let old = crate::journal::path(&self.start.directory, self.start.generation);
            self.journal = journal;
            self.start.generation = generation;
            // Nobody asks for it without its index; a janitor finds it with the rest.
            let _ = fs::remove_file(old);
        }
    }

    /// Registers ranges of a process. Returns those that the kernel refuses.
    pub(crate) fn register(&mut self, pid: i32, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let held = self.held.iter().find(|held| held.space.pid == Some(pid));
        let mut refused = ranges.to_vec();
        refused.retain(|range| held.is_none_or(|held| held.uffd.register(range).is_err()));
        refused
    }

    /// Pages are about to be taken away, or have been.
    pub(crate) fn set_moving(&mut self, moving: bool) {
        self.journal.set_moving(moving);
        self.mode = if moving { Mode::Moving } else { Mode::Guard };
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

fn journal(start: &Start, generation: u64, keeper: &Keeper) -> Result<Journal, ServerError> {
    let keeper = keeper.pid();
    let identity = Identity {
        image: start.image,
        generation,
        keeper,
        keeper_start: start_time(keeper).map_err(ServerError::system("look at", Some(keeper)))?,
    };
    Ok(Journal::create(&start.directory, identity)?)
}

/// When a process started, in clock ticks since boot: with the pid, its identity.
pub(crate) fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, can contain anything.
    stat.rsplit_once(')')
        .and_then(|(_, fields)| fields.split_ascii_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}
