//! The life of one container: which state follows from which event, and what is to be done.
//!
//! ```text
//!              Started           Sleep                DumpSucceeded
//!    Created ----------> Running ------> FallingAsleep -----------> Asleep
//!                          ^  ^               | |                     |
//!                          |  |  DumpAborted, | | DumpSucceeded,      | Wake
//!                          |  |  DumpFailed   | | a wake recorded     |
//!                          |  +---------------+ +-------> Waking <----+
//!                          |                              | |  ^ |
//!                          +------------------------------+ |  +-+ RestoreFailed, first time
//!                          |       RestoreSucceeded         |
//!                          |                                v RestoreFailed, second time
//!                          +-------------------------- RestoreFailed
//!                                Started (cold start)
//!
//!    any state but Stopped -- Exited --> Stopped
//! ```
//!
//! One driver task per container owns a [`Lifecycle`], hands it every event in the order they
//! happened and carries out the effects in the order they are returned.
//!
//! Invariants:
//!
//! 1. The gate is shut by [`Effect::BeginDump`] and opened by exactly one [`Effect::OpenGate`]
//!    per sleep, whichever way the sleep ends; a container that runs has an open gate.
//! 2. [`Effect::BeginRestore`] only ever follows a dump that succeeded, with its images there:
//!    [`Effect::DiscardImages`] comes when nothing can need them any more.
//! 3. A wake is never forgotten: a [`Event::Wake`] while falling asleep ends in `Running` or
//!    in `Waking`, never in `Asleep`.
//! 4. One [`Effect::AbortDump`] per dump at most.
//! 5. A container whose pages are still being filled in does not sleep: its memory is in two
//!    places.
//! 6. `Stopped` is final. What was under way when the container exited may still report; a
//!    restore that succeeded too late leaves processes that have to go.
//!
//! What the driver must see to:
//!
//! - A dump that succeeds ends the processes, so their exit is no [`Event::Exited`]. An exit
//!   seen while a dump or restore is under way waits until its result is known: after
//!   `DumpSucceeded` it is dropped; after any other result it is real.
//! - The result of an aborted dump is reported like any other: `DumpSucceeded` when the abort
//!   came too late, else `DumpAborted`.
//! - A wake for something that needs a live process (an exec, a signal) is sent in every
//!   state; the answer is given in `Running`.
//!
//! | state | Started | Sleep | Wake | DumpSucceeded | DumpAborted, DumpFailed |
//! |---|---|---|---|---|---|
//! | Created | Running | rejected | nothing | rejected | rejected |
//! | Running, filled | rejected | FallingAsleep: BeginDump | nothing | rejected | rejected |
//! | Running, filling | rejected | rejected | nothing | rejected | rejected |
//! | FallingAsleep | rejected | nothing | recorded: AbortDump | Asleep | Running: OpenGate, DiscardImages |
//! | FallingAsleep, wake recorded | rejected | rejected | nothing | Waking: BeginRestore | Running: OpenGate, DiscardImages |
//! | Asleep | rejected | nothing | Waking: BeginRestore | rejected | rejected |
//! | Waking | rejected | rejected | nothing | rejected | rejected |
//! | RestoreFailed | Running: OpenGate | rejected | nothing | rejected | rejected |
//! | Stopped | rejected | rejected | rejected | nothing | nothing |
//!
//! | state | RestoreSucceeded | RestoreFailed | FillFinished | FillFailed | Exited |
//! |---|---|---|---|---|---|
//! | Created | rejected | rejected | rejected | rejected | Stopped |
//! | Running, filled | rejected | rejected | rejected | rejected | Stopped |
//! | Running, filling | rejected | rejected | filled: DiscardImages | KillProcesses | Stopped: DiscardImages |
//! | Running, fill failed | rejected | rejected | rejected | rejected | Stopped |
//! | FallingAsleep | rejected | rejected | rejected | rejected | Stopped: AbortDump unless done, OpenGate, DiscardImages |
//! | Asleep | rejected | rejected | rejected | rejected | Stopped: OpenGate, DiscardImages |
//! | Waking | Running: OpenGate, DiscardImages unless lazy | BeginRestore, second time RestoreFailed: FollowRestorePolicy | rejected | rejected | Stopped: OpenGate, DiscardImages |
//! | RestoreFailed | rejected | rejected | rejected | rejected | Stopped: OpenGate |
//! | Stopped | KillProcesses | nothing | nothing | nothing | rejected |
//!
//! Images that could not be restored, or whose fill failed, stay for a diagnosis until the
//! container is deleted; so do they over a cold start, until the next dump replaces them.

use std::fmt;

/// How deep a container sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Depth {
    /// The processes are there, frozen, their memory in a file.
    Light,
    /// A checkpoint; no process is left.
    Deep,
}

impl Depth {
    /// The stable name, for status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Deep => "deep",
        }
    }
}

/// Which try at a restore this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Attempt {
    /// The first, lazy where the dump said so.
    First,
    /// The second and last, never lazy.
    Second,
}

/// Where the memory of a running container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fill {
    /// All of it is in its processes.
    Complete,
    /// Restored lazily, and part of it still in the images.
    UnderWay,
    /// Part of it can no longer be had: the processes are being killed.
    Failed,
}

/// What woke a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WakeCause {
    /// A packet that needs the container.
    Traffic,
    /// A process to be started in it.
    Exec,
    /// Somebody attached to it, or wrote to its standard input.
    Attach,
    /// A signal other than KILL.
    Signal,
    /// It is to be paused, which needs processes.
    Pause,
    /// Its terminal changes size.
    Resize,
    /// Its resources change.
    Update,
    /// A user's checkpoint of it.
    Checkpoint,
    /// Asked for through the shim's own service.
    Request,
    /// The shim or the node goes down.
    Shutdown,
}

impl WakeCause {
    /// The stable name, for status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Traffic => "traffic",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::Signal => "signal",
            Self::Pause => "pause",
            Self::Resize => "resize",
            Self::Update => "update",
            Self::Checkpoint => "checkpoint",
            Self::Request => "request",
            Self::Shutdown => "shutdown",
        }
    }
}

impl fmt::Display for WakeCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Created, its process not started.
    Created,
    /// Its processes run.
    Running {
        /// Where its memory is.
        fill: Fill,
    },
    /// A dump is under way.
    FallingAsleep {
        /// What asked for the container meanwhile, first come.
        wake: Option<WakeCause>,
    },
    /// It sleeps.
    Asleep {
        /// How deep.
        depth: Depth,
        /// Whether the restore will be lazy.
        lazy: bool,
    },
    /// A restore is under way.
    Waking {
        /// What woke it.
        cause: WakeCause,
        /// Which try this is.
        attempt: Attempt,
        /// Whether this try is lazy.
        lazy: bool,
    },
    /// Two restores failed; the node's policy decides.
    RestoreFailed,
    /// It has exited.
    Stopped,
}

impl State {
    /// The stable name, for status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::FallingAsleep { .. } => "falling-asleep",
            Self::Asleep { .. } => "asleep",
            Self::Waking { .. } => "waking",
            Self::RestoreFailed => "restore-failed",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What happened to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Its process was started: the first time, or anew after a restore that failed.
    Started,
    /// The idle policy or a request says that it shall sleep.
    Sleep,
    /// Something needs it awake.
    Wake(WakeCause),
    /// The dump is complete and the processes are gone.
    DumpSucceeded {
        /// Whether the restore is to be lazy.
        lazy: bool,
    },
    /// The dump was given up as asked; the processes run.
    DumpAborted,
    /// The dump failed; the processes run.
    DumpFailed,
    /// The processes run again.
    RestoreSucceeded,
    /// The restore failed; nothing of it is left but the images.
    RestoreFailed,
    /// All memory of a lazy restore is back.
    FillFinished,
    /// Memory of a lazy restore cannot be brought back; processes that touch it block.
    FillFailed,
    /// The container's first process is gone for good.
    Exited,
}

/// What the driver has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Shut the gate and checkpoint the container. Images that are still there are replaced.
    BeginDump,
    /// Ask the dump that is under way to stop if it still can.
    AbortDump,
    /// Restore the container from its images.
    BeginRestore {
        /// Whether to let it run before all of its memory is back.
        lazy: bool,
    },
    /// Let packets through again, first those that were held.
    OpenGate,
    /// Remove the images, once nothing under way uses them any more.
    DiscardImages,
    /// Kill what is left of the container's processes.
    KillProcesses,
    /// Do what the node's configuration says about a restore that failed: report an exit
    /// ([`Event::Exited`]) or start the process anew ([`Event::Started`]).
    FollowRestorePolicy,
}

/// An event that makes no sense in its state. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} makes no sense while the container is {state}")]
pub struct Rejected {
    /// The state at the time.
    pub state: State,
    /// The event.
    pub event: Event,
}

/// The state of one container and the only way to change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lifecycle {
    state: State,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle {
    /// A container that was just created.
    pub fn new() -> Self {
        Self {
            state: State::Created,
        }
    }

    /// The state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Takes an event in, returns what is to be done, in order.
    pub fn handle(&mut self, event: Event) -> Result<Vec<Effect>, Rejected> {
        let (next, effects) = transition(self.state, event).ok_or(Rejected {
            state: self.state,
            event,
        })?;
        self.state = next;
        Ok(effects)
    }
}

/// The table of the module's documentation. `None` is "rejected".
fn transition(state: State, event: Event) -> Option<(State, Vec<Effect>)> {
    const RUNNING: State = State::Running {
        fill: Fill::Complete,
    };
    let unchanged = Some((state, vec![]));
    match (state, event) {
        (State::Stopped, Event::RestoreSucceeded) => Some((state, vec![Effect::KillProcesses])),
        (State::Stopped, late) if is_report(late) => unchanged,
        (State::Stopped, _) => None,
        (_, Event::Exited) => Some((State::Stopped, after_exit(state))),

        (State::Created, Event::Started) => Some((RUNNING, vec![])),
        (State::RestoreFailed, Event::Started) => Some((RUNNING, vec![Effect::OpenGate])),

        (RUNNING, Event::Sleep) => {
            Some((State::FallingAsleep { wake: None }, vec![Effect::BeginDump]))
        }
        (State::FallingAsleep { wake: None } | State::Asleep { .. }, Event::Sleep) => unchanged,

        (State::FallingAsleep { wake: None }, Event::Wake(cause)) => Some((
            State::FallingAsleep { wake: Some(cause) },
            vec![Effect::AbortDump],
        )),
        (State::Asleep { lazy, .. }, Event::Wake(cause)) => Some(begin_waking(cause, lazy)),
        (_, Event::Wake(_)) => unchanged,

        (State::FallingAsleep { wake }, Event::DumpSucceeded { lazy }) => Some(match wake {
            Some(cause) => begin_waking(cause, lazy),
            None => {
                let depth = Depth::Deep;
                (State::Asleep { depth, lazy }, vec![])
            }
        }),
        (State::FallingAsleep { .. }, Event::DumpAborted | Event::DumpFailed) => {
            Some((RUNNING, vec![Effect::OpenGate, Effect::DiscardImages]))
        }

        (State::Waking { lazy: true, .. }, Event::RestoreSucceeded) => {
            let fill = Fill::UnderWay;
            Some((State::Running { fill }, vec![Effect::OpenGate]))
        }
        (State::Waking { lazy: false, .. }, Event::RestoreSucceeded) => {
            Some((RUNNING, vec![Effect::OpenGate, Effect::DiscardImages]))
        }
        (State::Waking { cause, attempt, .. }, Event::RestoreFailed) => Some(match attempt {
            Attempt::First => (
                State::Waking {
                    cause,
                    attempt: Attempt::Second,
                    lazy: false,
                },
                vec![Effect::BeginRestore { lazy: false }],
            ),
            Attempt::Second => (State::RestoreFailed, vec![Effect::FollowRestorePolicy]),
        }),

        (
            State::Running {
                fill: Fill::UnderWay,
            },
            Event::FillFinished,
        ) => Some((RUNNING, vec![Effect::DiscardImages])),
        (
            State::Running {
                fill: Fill::UnderWay,
            },
            Event::FillFailed,
        ) => {
            let fill = Fill::Failed;
            Some((State::Running { fill }, vec![Effect::KillProcesses]))
        }
        _ => None,
    }
}

fn begin_waking(cause: WakeCause, lazy: bool) -> (State, Vec<Effect>) {
    let waking = State::Waking {
        cause,
        attempt: Attempt::First,
        lazy,
    };
    (waking, vec![Effect::BeginRestore { lazy }])
}

/// What a container leaves to be cleaned up that exits in `state`.
fn after_exit(state: State) -> Vec<Effect> {
    match state {
        State::Created
        | State::Stopped
        | State::Running {
            fill: Fill::Complete | Fill::Failed,
        } => vec![],
        State::Running {
            fill: Fill::UnderWay,
        } => vec![Effect::DiscardImages],
        State::FallingAsleep { wake: None } => {
            vec![Effect::AbortDump, Effect::OpenGate, Effect::DiscardImages]
        }
        State::FallingAsleep { wake: Some(_) } | State::Asleep { .. } | State::Waking { .. } => {
            vec![Effect::OpenGate, Effect::DiscardImages]
        }
        State::RestoreFailed => vec![Effect::OpenGate],
    }
}

/// Whether an event is the result of something that was under way.
fn is_report(event: Event) -> bool {
    match event {
        Event::DumpSucceeded { .. }
        | Event::DumpAborted
        | Event::DumpFailed
        | Event::RestoreSucceeded
        | Event::RestoreFailed
        | Event::FillFinished
        | Event::FillFailed => true,
        Event::Started | Event::Sleep | Event::Wake(_) | Event::Exited => false,
    }
}

#[cfg(test)]
mod tests;
