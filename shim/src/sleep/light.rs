//! Light sleep: the memory of a container that stands still goes out, its processes stay frozen.
//!
//! ```text
//!   frozen -> seize -> thaw -> stopped by the tracer -> memory out -> frozen -> release
//! ```
//!
//! From the freeze to the wake no thread runs an instruction of its own. What is missing is answered
//! for by the pager from the moment it is missing, so that a thread that runs after all, because it is
//! being killed or somebody else thaws it, finds every byte.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use podmotion_criu_driver::{DumpControl, Freezer, freezer::FreezerError, images};
use podmotion_inject::{Seized, on_own_thread};
use podmotion_model::value::Share;
use podmotion_pager::{
    FillFailed, FillPolicy, Filling, Moved, NotMoved, OutError, OutStats, Pager, Waking, Watch,
    Watching,
};

use super::{
    look, quota,
    signals::Signals,
    still::{FREEZE, Target},
    trouble::Trouble,
    turn,
};
use crate::gate::Ends;

/// The memory of a container that sleeps light.
pub enum Memory {
    /// It is out.
    Out(Moved),
    /// It is on its way back in.
    ComingIn(Filling),
    /// It is in its processes, which stand still all the same.
    In(Pager),
}

/// A container that sleeps light.
pub struct Fallen {
    /// Its memory.
    pub moved: Moved,
    /// Ports that wake it.
    pub ports: BTreeSet<u16>,
    /// From the decision until its memory was free.
    pub total: Duration,
    /// Of it, the time in which it stood still.
    pub frozen: Duration,
    /// What its processes had waiting when they were stopped.
    pub signals: Signals,
}

/// A container that did not fall asleep.
pub struct Failed {
    /// For the next try.
    pub pager: Option<Pager>,
    /// Why.
    pub trouble: Trouble,
}

/// What moving out works with.
pub struct Attempt<'a> {
    /// The container.
    pub target: Target<'a>,
    /// Where the image goes; made if it is not there.
    pub directory: &'a Path,
    /// What is known from the last time.
    pub pager: Option<Pager>,
    /// What it has not written to lately.
    pub watch: Option<Watch>,
    /// What all images may take together.
    pub quota: Share,
    /// Gives it up.
    pub control: &'a DumpControl,
}

impl Attempt<'_> {
    /// Blocks until the container sleeps or runs on.
    pub fn run(mut self) -> Result<Fallen, Box<Failed>> {
        let started = Instant::now();
        let mut pager = self.pager.take();
        let turn_and_room = turn::take(self.directory, self.control).and_then(|turn| {
            let needed = self.target.facts.cgroup.anonymous_memory();
            let room = quota::reserve(self.directory, needed.unwrap_or_default(), self.quota)?;
            Ok((room, turn))
        });
        let _turn_and_room = match turn_and_room {
            Ok(both) => both,
            Err(trouble) => return Err(Failed::new(pager, trouble)),
        };
        if let Some(pager) = &mut pager {
            pager.set_watch(self.watch.take());
            // An error of it comes again when its result is needed.
            let _ = pager.get_ready();
        }
        let outcome = self.target.stand_still(Ends::Alive, |freezer, ports| {
            let stopped = Instant::now();
            if self.control.aborted() {
                return Err(Trouble::Aborted);
            }
            let signals = Signals::at_standstill(&look::processes(self.target.facts)?)?;
            let ready = match pager.take() {
                Some(pager) => pager,
                None => create(self.directory)?,
            };
            match move_out(freezer, ready, self.control) {
                Ok(moved) => Ok(Fallen {
                    moved,
                    ports,
                    total: started.elapsed(),
                    frozen: stopped.elapsed(),
                    signals,
                }),
                Err(failed) => {
                    pager = failed.pager;
                    Err(failed.trouble)
                }
            }
        });
        outcome.map_err(|trouble| {
            if let Some(pager) = &mut pager {
                pager.stand_down();
            }
            Failed::new(pager, trouble)
        })
    }
}

fn create(directory: &Path) -> Result<Pager, Trouble> {
    images::make_own(directory)?;
    Ok(Pager::create(directory)?)
}

/// Time for the threads of a running container to stop, before it is left alone.
const STOP: Duration = Duration::from_millis(20);

/// Time to compare what a running container does not write to with its image.
const COMPARE: Duration = Duration::from_millis(900);

/// Has writes of the running container noted from now on, and compares the rest with its image: what has not been written
/// to when it falls asleep need not be read then. It is stopped for a moment, by the tracer alone, so that whoever
/// freezes or pauses it meanwhile is not disturbed.
pub fn watch(id: &str, freezer: &Path, mut watching: Watching) -> Result<Watch, Trouble> {
    let until = Instant::now() + COMPARE;
    let freezer = Freezer::new(freezer)?;
    watching.find().map_err(Trouble::Watch)?;
    let begin = || -> Result<(Watch, Duration), Trouble> {
        let stopped = Instant::now();
        let mut seized = Seized::begin(&freezer.processes()?)?;
        seized.wait_stopped(STOP)?;
        let watch = watching.begin(&mut seized)?;
        seized.release()?;
        Ok((watch, stopped.elapsed()))
    };
    let (mut watch, stopped) = on_own_thread(begin)??;
    watch.compare(until).map_err(Trouble::Watch)?;
    log::debug!(
        "{id} was stopped for {stopped:?} to be watched; {} bytes are as in its image",
        watch.same_bytes()
    );
    Ok(watch)
}

/// Moves the memory of the frozen container out. It is frozen again when this succeeds, and has all
/// its memory if it fails. In a thread of its own: the kernel takes a tracer's requests from no other, and
/// what has not stopped in time is let go only when that ends.
pub fn move_out(
    freezer: &Freezer,
    pager: Pager,
    control: &DumpControl,
) -> Result<Moved, Box<Failed>> {
    let mut kept = Some(pager);
    let moved = on_own_thread(|| match kept.take() {
        Some(pager) => seize_and_move(freezer, pager, control),
        None => Err(Failed::new(None, Trouble::Aborted)),
    });
    moved.unwrap_or_else(|error| Err(Failed::new(kept, error.into())))
}

fn seize_and_move(
    freezer: &Freezer,
    pager: Pager,
    control: &DumpControl,
) -> Result<Moved, Box<Failed>> {
    let stopped = || -> Result<Seized, Trouble> {
        let mut seized = Seized::begin(&freezer.processes()?)?;
        // Those of cgroup version 1 stop for a tracer only now, and before anything else.
        freezer.thaw()?;
        seized.wait_stopped(FREEZE)?;
        Ok(seized)
    };
    let mut seized = match stopped() {
        Ok(seized) => seized,
        Err(trouble) => {
            let pager = Some(pager);
            return Err(Failed::new(pager, trouble));
        }
    };
    let moved = pager.move_out(&mut seized, &|| control.aborted());
    // Threads that a tracer has stopped count as frozen.
    let frozen = freezer.freeze(FREEZE).map_err(Trouble::from);
    let released = seized.release().map_err(Trouble::from);
    match (moved, frozen.and(released)) {
        (Ok(moved), Ok(())) => Ok(moved),
        (Ok(moved), Err(trouble)) => Err(match bring_back(moved) {
            Ok(pager) => Failed::new(Some(pager), trouble),
            Err(lost) => Failed::new(None, lost.into()),
        }),
        (Err(NotMoved::Unchanged { pager, error }), _) => {
            let trouble = match error {
                OutError::GivenUp => Trouble::Aborted,
                error => error.into(),
            };
            Err(Failed::new(Some(*pager), trouble))
        }
        (Err(NotMoved::Lost(lost)), _) => Err(Failed::new(None, lost.into())),
    }
}

/// Moves all memory back in, while the container stands still.
fn bring_back(moved: Moved) -> Result<Pager, FillFailed> {
    let (pager, _) = moved.serve(FillPolicy::at_once())?.wait()?;
    Ok(pager)
}

impl Failed {
    /// On the heap: it is large.
    pub fn new(pager: Option<Pager>, trouble: Trouble) -> Box<Self> {
        Box::new(Self { pager, trouble })
    }
}

/// A container that runs again.
pub struct Risen {
    /// What is still on its way.
    pub memory: Rest,
    /// From the request until its processes ran.
    pub total: Duration,
    /// Of it, the time for what the last wakes had needed.
    pub prefetch: Duration,
    /// Of it, the time for thawing.
    pub thaw: Duration,
    /// When they ran.
    pub at: Instant,
}

/// Memory of a container that has woken from light sleep.
pub enum Rest {
    /// Part of it is on its way.
    Filling(Filling),
    /// All of it is there.
    Complete(Pager),
}

/// Why a container did not wake from light sleep.
#[derive(Debug, thiserror::Error)]
pub enum RiseTrouble {
    /// There is nothing to wake.
    #[error("the container's memory is nowhere")]
    Nothing,
    /// Its memory cannot be had.
    #[error(transparent)]
    Lost(#[from] FillFailed),
    /// Its cgroup cannot be thawed.
    #[error(transparent)]
    Freezer(#[from] FreezerError),
}

/// A container that is being woken.
pub struct Rising {
    since: Instant,
    memory: Coming,
}

enum Coming {
    /// The pager's thread lets the container run when what it needs first is there.
    First(Waking<Thawed>),
    /// It has been let run.
    Done(Rest, Thawed),
}

/// A cgroup was thawed, or not.
struct Thawed {
    result: Result<(), FreezerError>,
    took: Duration,
    at: Instant,
}

/// For a node that is short of memory: what nobody asks for comes in at 32 MiB a second, so that
/// others have the time to make room.
pub const GENTLY: FillPolicy = FillPolicy {
    quiet: Duration::from_millis(2),
    patience: Duration::from_millis(20),
    rate: 32 << 20,
    head_start: Duration::from_millis(20),
    give_way: Duration::from_secs(1),
};

/// Begins to wake a container, without waiting for it: what the last wakes have needed goes in, then it runs, then the rest follows.
pub fn begin_rise(
    freezer: &Path,
    memory: Memory,
    policy: FillPolicy,
) -> Result<Rising, RiseTrouble> {
    let since = Instant::now();
    let freezer = Freezer::new(freezer)?;
    let memory = match memory {
        Memory::Out(moved) => Coming::First(moved.begin_wake(policy, move || thaw(&freezer))?),
        Memory::ComingIn(filling) => Coming::Done(Rest::Filling(filling), thaw(&freezer)),
        Memory::In(pager) => Coming::Done(Rest::Complete(pager), thaw(&freezer)),
    };
    Ok(Rising { since, memory })
}

fn thaw(freezer: &Freezer) -> Thawed {
    let started = Instant::now();
    let result = freezer.thaw();
    let at = Instant::now();
    Thawed {
        result,
        took: at - started,
        at,
    }
}

impl Rising {
    /// Blocks until the container runs or is known not to.
    pub fn wait(self) -> Result<Risen, RiseTrouble> {
        let (memory, prefetch, thawed) = match self.memory {
            Coming::First(waking) => {
                let (filling, woken) = waking.wait()?;
                (Rest::Filling(filling), woken.prefetch, woken.ran)
            }
            Coming::Done(memory, thawed) => (memory, Duration::ZERO, thawed),
        };
        thawed.result?;
        Ok(Risen {
            memory,
            total: thawed.at - self.since,
            prefetch,
            thaw: thawed.took,
            at: thawed.at,
        })
    }
}

/// Bytes of memory that are out.
pub fn bytes_out(stats: &OutStats) -> u64 {
    stats.written_bytes + stats.unchanged_bytes + stats.zero_bytes + stats.missing_bytes
}
