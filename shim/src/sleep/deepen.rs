//! From light sleep to deep: CRIU dumps what is in the processes, what they miss is added from the
//! image of their memory, the processes go.
//!
//! ```text
//!   light ---- room on the disk? ---- dump, add what is missing ----> deep
//!     ^              | no                     | failed
//!     +--------------+---- memory out again <-+
//! ```
//!
//! The container stands still all the time, but for a moment when CRIU gives a dump up: then it runs
//! with what it misses being filled in, as after a wake.

use std::{ops::Range, path::Path, time::Instant};

use podmotion_criu_driver::{Tasks, Veto};
use podmotion_model::{idle::Disk, value::Share};
use podmotion_pager::{Absent, FillPolicy, Moved, Pager, Resumed};

use super::{
    fall::{self, Fallen},
    light::{self, Memory},
    quota, room,
    trouble::Trouble,
};
use crate::gate::Ends;

/// What goes deeper.
pub struct Attempt<'a> {
    /// The checkpoint.
    pub dump: fall::Attempt<'a>,
    /// The memory.
    pub moved: Moved,
    /// What the checkpoint must leave of the disk.
    pub min_disk: Share,
    /// What all images may take together.
    pub quota: Share,
}

/// A container that did not get there.
pub struct Stays {
    /// Its memory, where its processes are as they were.
    pub memory: Option<Memory>,
    /// Why.
    pub trouble: Trouble,
}

impl Stays {
    /// On the heap: it is large.
    pub fn new(memory: Option<Memory>, trouble: Trouble) -> Box<Self> {
        Box::new(Self { memory, trouble })
    }
}

/// What the processes miss, as CRIU's driver asks for it.
#[derive(Debug)]
struct Missing(Absent);

impl podmotion_criu_driver::Absent for Missing {
    fn ranges(&self, pid: i32) -> Vec<Range<u64>> {
        self.0.ranges(pid)
    }

    fn read(&self, pid: i32, address: u64, into: &mut [u8]) -> Result<(), Veto> {
        self.0.read(pid, address, into).map_err(Veto::from)
    }
}

impl Attempt<'_> {
    /// Blocks until the container sleeps deep, or light again.
    pub fn run(self) -> Result<Fallen, Box<Stays>> {
        let Self {
            dump,
            moved,
            min_disk,
            quota,
        } = self;
        let needed = light::bytes_out(moved.stats());
        let prepared = room_for(needed, dump.images, min_disk)
            .and_then(|()| quota::reserve(dump.images, needed, quota))
            .and_then(|reserved| Ok((reserved, missing(&dump, &moved)?)));
        let (_reserved, missing) = match prepared {
            Ok(prepared) => prepared,
            Err(trouble) => return Err(Stays::new(Some(Memory::Out(moved)), trouble)),
        };
        let started = Instant::now();
        let dumped = dump
            .target
            .hold_connections(Ends::Gone)
            .and_then(|ports| dump.dump(started, ports, Some(&missing)));
        match dumped {
            Ok(fallen) => Ok(fallen),
            Err(trouble) if trouble.tasks() != Tasks::Running => Err(Stays::new(None, trouble)),
            Err(trouble) if dump.control.aborted() => Err(run_on(moved.again(), trouble)),
            Err(trouble) => Err(out_again(&dump, moved.again(), trouble)),
        }
    }
}

/// The checkpoint replaces the image of moved memory, but for a moment both are there.
fn room_for(needed: u64, images: &Path, least: Share) -> Result<(), Trouble> {
    let room = room::disk(images)?;
    let disk = Disk {
        room,
        needed,
        least,
    };
    match disk.is_short() {
        true => Err(Trouble::DiskPressure(disk)),
        false => Ok(()),
    }
}

fn missing(dump: &fall::Attempt<'_>, moved: &Moved) -> Result<Missing, Trouble> {
    let pids = dump.target.freezer()?.processes()?;
    Ok(Missing(moved.absent(&pids)?))
}

/// What keeps the container from a checkpoint need not keep it awake.
fn out_again(dump: &fall::Attempt<'_>, pager: Pager, trouble: Trouble) -> Box<Stays> {
    let mut kept = Some(pager);
    let moved = dump.target.stand_still(Ends::Alive, |freezer, _| {
        let Some(pager) = kept.take() else {
            return Err(Trouble::Aborted);
        };
        light::move_out(freezer, pager, dump.control).map_err(|failed| {
            kept = failed.pager;
            failed.trouble
        })
    });
    match (moved, kept) {
        (Ok(moved), _) => Stays::new(Some(Memory::Out(moved)), trouble),
        (Err(_), Some(pager)) => run_on(pager, trouble),
        // Memory is lost, which is worse than what came before it.
        (Err(lost), None) => Stays::new(None, lost),
    }
}

/// It runs already, or is about to.
fn run_on(pager: Pager, trouble: Trouble) -> Box<Stays> {
    match pager.resume(FillPolicy::default()) {
        Ok(Resumed::Filling(filling)) => Stays::new(Some(Memory::ComingIn(filling)), trouble),
        Ok(Resumed::Complete(pager)) => Stays::new(Some(Memory::In(pager)), trouble),
        Err(lost) => Stays::new(None, lost.into()),
    }
}
