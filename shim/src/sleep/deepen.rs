//! From light sleep to deep: the memory goes back in, CRIU dumps the container, the processes go.
//!
//! ```text
//!   light ---- room for it? ---- memory in ---- dump ----> deep
//!     ^            | no                           | failed
//!     +------------+------ memory out again <-----+
//! ```
//!
//! The container stands still all the time, but for a moment when CRIU gives a dump up.

use std::{os::fd::AsFd as _, path::Path, time::Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use podmotion_criu_driver::{DumpControl, Tasks};
use podmotion_model::{idle::Disk, value::Share};
use podmotion_pager::{FillFailed, FillPolicy, Pager};

use super::{
    fall::{self, Fallen},
    light::{self, Memory},
    room,
    trouble::Trouble,
};
use crate::gate::Ends;

/// What goes deeper.
pub struct Attempt<'a> {
    /// The checkpoint.
    pub dump: fall::Attempt<'a>,
    /// The memory.
    pub memory: Memory,
    /// What the checkpoint must leave of the disk.
    pub min_disk: Share,
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

/// Memory that is left free beside what a checkpoint needs, in bytes.
const SPARE: u64 = 64 << 20;

impl Attempt<'_> {
    /// Blocks until the container sleeps deep, or light again.
    pub fn run(self) -> Result<Fallen, Box<Stays>> {
        let Self {
            dump,
            memory,
            min_disk,
        } = self;
        if let Memory::Out(moved) = &memory
            && let Err(trouble) = room_for(light::bytes_out(moved.stats()), dump.images, min_disk)
        {
            return Err(Stays::new(Some(memory), trouble));
        }
        let pager = bring_in(memory, dump.control)?;
        let started = Instant::now();
        let dumped = dump
            .target
            .hold_connections(Ends::Gone)
            .and_then(|ports| dump.dump(started, ports));
        let trouble = match dumped {
            Ok(fallen) => return Ok(fallen),
            Err(trouble) => trouble,
        };
        if trouble.tasks() != Tasks::Running {
            let memory = None;
            return Err(Stays::new(memory, trouble));
        }
        if dump.control.aborted() {
            let memory = Some(Memory::In(pager));
            return Err(Stays::new(memory, trouble));
        }
        Err(Box::new(out_again(&dump, pager, trouble)))
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

fn bring_in(memory: Memory, control: &DumpControl) -> Result<Pager, Box<Stays>> {
    let lost = |lost: FillFailed| Stays::new(None, lost.into());
    let moved = match memory {
        Memory::In(pager) => return Ok(pager),
        Memory::ComingIn(filling) => return Ok(filling.wait().map_err(lost)?.0),
        Memory::Out(moved) => moved,
    };
    let needed = light::bytes_out(moved.stats());
    let available = match room::memory() {
        Ok(room) => room.free,
        Err(cause) => return Err(Stays::new(Some(Memory::Out(moved)), cause.into())),
    };
    if available < needed.saturating_add(SPARE) {
        let trouble = Trouble::NoRoom { needed, available };
        return Err(Stays::new(Some(Memory::Out(moved)), trouble));
    }
    let filling = moved.serve(FillPolicy::at_once()).map_err(lost)?;
    // Whoever wants the container does not wait for memory that it may not need.
    let mut either = [
        PollFd::new(filling.as_fd(), PollFlags::POLLIN),
        PollFd::new(control.as_fd(), PollFlags::POLLIN),
    ];
    let waited = loop {
        match poll(&mut either, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => {}
            waited => break waited,
        }
    };
    if waited.is_ok() && control.aborted() {
        return Err(Stays::new(
            Some(Memory::ComingIn(filling)),
            Trouble::Aborted,
        ));
    }
    Ok(filling.wait().map_err(lost)?.0)
}

/// What keeps the container from a checkpoint need not keep it awake.
fn out_again(dump: &fall::Attempt<'_>, pager: Pager, trouble: Trouble) -> Stays {
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
        (Ok(moved), _) => Stays {
            memory: Some(Memory::Out(moved)),
            trouble,
        },
        (Err(_), Some(pager)) => Stays {
            memory: Some(Memory::In(pager)),
            trouble,
        },
        // Memory is lost, which is worse than what came before it.
        (Err(lost), None) => Stays {
            memory: None,
            trouble: lost,
        },
    }
}
