//! The life of one container: which state follows from which event, and what is to be done.
//!
//! ```text
//!              Started           Sleep                  FellAsleep          Deepen
//!    Created ----------> Running ------> FallingAsleep -----------> Asleep ------> Deepening
//!                          ^  ^               | |                   | ^  ^           | | |
//!                          |  | SleepAborted, | | FellAsleep,   Wake | |  +-----------+ | |
//!                          |  | SleepFailed   | | a wake recorded   | |   FellAsleep,   | |
//!                          |  +---------------+ +-------> Waking <--+ +-----------------+ |
//!                          |                              | | ^ ^       SleepAborted, ... |
//!                          +------------------------------+ | | +-------------------------+
//!                          |             Woke               | |   a wake recorded
//!                          |                                | +- WakeFailed, first time, from deep
//!                          |                                v WakeFailed, second time
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
//! 1. The gate is shut by [`Effect::BeginMoveOut`], [`Effect::BeginDump`] or [`Effect::BeginStop`]
//!    and opened by exactly one [`Effect::OpenGate`] per sleep, whichever way the sleep ends; a container that runs has
//!    an open gate. What is held may be let in from [`Effect::BeginMoveIn`] on: the sockets are there.
//! 2. [`Effect::BeginRestore`] only ever follows a dump that succeeded, with its images there:
//!    [`Effect::DiscardImages`] comes when nothing can need them any more. [`Effect::BeginMoveIn`]
//!    only ever follows a move out that succeeded.
//! 3. A wake is never forgotten: a [`Event::Wake`] while falling asleep or while sleeping deeper
//!    ends in `Running` or in `Waking`, never in `Asleep`.
//! 4. One [`Effect::AbortSleep`] per begun sleep at most.
//! 5. A container whose pages are still being filled in does not sleep: its memory is in two
//!    places.
//! 6. `Stopped` is final. What was under way when the container exited may still report; a
//!    restore that succeeded too late leaves processes that have to go.
//! 7. Processes that lack memory which cannot be had never run: a wake from light sleep that fails
//!    ends in [`Effect::KillProcesses`].
//!
//! What the driver must see to:
//!
//! - A dump or a stop that succeeds ends the processes, so their exit is no [`Event::Exited`]. An
//!   exit seen while one or a wake is under way waits until its result is known: after
//!   `FellAsleep` it is dropped; after any other result it is real. In light sleep the processes
//!   are there, and their exit is real; so is that of a program that is being started anew.
//! - The result of an aborted sleep is reported like any other: `FellAsleep` when the abort
//!   came too late, else `SleepAborted`.
//! - A wake for something that needs a live process (an exec, a signal) is sent in every
//!   state; the answer is given in `Running`.
//!
//! | state | Started | Sleep | Deepen | Wake | FellAsleep | SleepAborted, SleepFailed |
//! |---|---|---|---|---|---|---|
//! | Created | Running | rejected | rejected | nothing | rejected | rejected |
//! | Running, filled | rejected | FallingAsleep: BeginMoveOut, BeginDump or BeginStop | rejected | nothing | rejected | rejected |
//! | Running, filling | rejected | rejected | rejected | nothing | rejected | rejected |
//! | FallingAsleep | rejected | nothing | rejected | recorded: AbortSleep | Asleep | Running: OpenGate, DiscardImages |
//! | FallingAsleep, wake recorded | rejected | rejected | rejected | nothing | Waking: BeginMoveIn, BeginRestore or BeginStart | Running: OpenGate, DiscardImages |
//! | Asleep, light | rejected | nothing | Deepening: BeginDeepening | Waking: BeginMoveIn | rejected | rejected |
//! | Asleep, deep | rejected | nothing | nothing | Waking: BeginRestore | rejected | rejected |
//! | Asleep, cold | rejected | nothing | nothing | Waking: BeginStart | rejected | rejected |
//! | Deepening | rejected | nothing | nothing | recorded: AbortSleep | Asleep, deep | Asleep, light: DiscardImages |
//! | Deepening, wake recorded | rejected | rejected | rejected | nothing | Waking: BeginRestore | Waking: DiscardImages, BeginMoveIn |
//! | Waking | rejected | rejected | rejected | nothing | rejected | rejected |
//! | RestoreFailed | Running: OpenGate | rejected | rejected | nothing | rejected | rejected |
//! | Stopped | rejected | rejected | rejected | rejected | nothing | nothing |
//!
//! | state | Woke | WakeFailed | FillFinished | FillFailed | Exited |
//! |---|---|---|---|---|---|
//! | Created | rejected | rejected | rejected | rejected | Stopped |
//! | Running, filled | rejected | rejected | rejected | rejected | Stopped |
//! | Running, filling | rejected | rejected | filled: DiscardImages after deep | KillProcesses | Stopped: DiscardImages |
//! | Running, fill failed | rejected | rejected | rejected | rejected | Stopped |
//! | FallingAsleep, Deepening | rejected | rejected | rejected | rejected | Stopped: AbortSleep unless done, OpenGate, DiscardImages |
//! | Asleep | rejected | rejected | rejected | rejected | Stopped: OpenGate, DiscardImages |
//! | Waking from light | Running, filling: OpenGate | fill failed: OpenGate, KillProcesses | rejected | rejected | Stopped: OpenGate, DiscardImages |
//! | Waking from cold | Running: OpenGate | rejected | rejected | rejected | Stopped: OpenGate, DiscardImages |
//! | Waking from deep | Running: OpenGate, DiscardImages unless lazy | BeginRestore, second time RestoreFailed: FollowRestorePolicy | rejected | rejected | Stopped: OpenGate, DiscardImages |
//! | RestoreFailed | rejected | rejected | rejected | rejected | Stopped: OpenGate |
//! | Stopped | KillProcesses | nothing | nothing | nothing | rejected |
//!
//! Images that could not be restored, or whose fill failed, stay for a diagnosis until the
//! container is deleted; so do they over a cold start, until the next dump replaces them.

mod state;

pub use state::{Attempt, Depth, Effect, Event, Fill, State, WakeCause};

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
        (State::Stopped, Event::Woke) => Some((state, vec![Effect::KillProcesses])),
        (State::Stopped, late) if is_report(late) => unchanged,
        (State::Stopped, _) => None,
        (_, Event::Exited) => Some((State::Stopped, after_exit(state))),

        (State::Created, Event::Started) => Some((RUNNING, vec![])),
        (State::RestoreFailed, Event::Started) => Some((RUNNING, vec![Effect::OpenGate])),

        (RUNNING, Event::Sleep(into)) => {
            let begin = match into {
                Depth::Light => Effect::BeginMoveOut,
                Depth::Deep => Effect::BeginDump,
                Depth::Cold => Effect::BeginStop,
            };
            Some((State::FallingAsleep { into, wake: None }, vec![begin]))
        }
        (
            State::FallingAsleep { wake: None, .. }
            | State::Asleep { .. }
            | State::Deepening { wake: None },
            Event::Sleep(_),
        ) => unchanged,
        (State::Asleep { depth, .. }, Event::Deepen) => match depth {
            Depth::Light => Some((
                State::Deepening { wake: None },
                vec![Effect::BeginDeepening],
            )),
            Depth::Deep | Depth::Cold => unchanged,
        },
        (State::Deepening { wake: None }, Event::Deepen) => unchanged,

        (State::FallingAsleep { into, wake: None }, Event::Wake(cause)) => {
            let wake = Some(cause);
            let falling = State::FallingAsleep { into, wake };
            Some((falling, vec![Effect::AbortSleep]))
        }
        (State::Deepening { wake: None }, Event::Wake(cause)) => {
            let wake = Some(cause);
            Some((State::Deepening { wake }, vec![Effect::AbortSleep]))
        }
        (State::Asleep { depth, lazy }, Event::Wake(cause)) => {
            Some(begin_waking(depth, cause, lazy))
        }
        (_, Event::Wake(_)) => unchanged,

        (State::FallingAsleep { into, wake }, Event::FellAsleep { lazy }) => {
            Some(fell_asleep(into, wake, lazy))
        }
        (State::Deepening { wake }, Event::FellAsleep { lazy }) => {
            Some(fell_asleep(Depth::Deep, wake, lazy))
        }
        (State::FallingAsleep { .. }, Event::SleepAborted | Event::SleepFailed) => {
            Some((RUNNING, vec![Effect::OpenGate, Effect::DiscardImages]))
        }
        (State::Deepening { wake }, Event::SleepAborted | Event::SleepFailed) => {
            let (next, mut effects) = fell_asleep(Depth::Light, wake, true);
            effects.insert(0, Effect::DiscardImages);
            Some((next, effects))
        }

        (State::Waking { from, lazy, .. }, Event::Woke) => Some(match (from, lazy) {
            (Depth::Cold, _) => (RUNNING, vec![Effect::OpenGate]),
            (Depth::Deep, false) => (RUNNING, vec![Effect::OpenGate, Effect::DiscardImages]),
            (Depth::Deep, true) | (Depth::Light, _) => {
                let fill = Fill::UnderWay { from };
                (State::Running { fill }, vec![Effect::OpenGate])
            }
        }),
        (
            State::Waking {
                from: Depth::Light, ..
            },
            Event::WakeFailed,
        ) => {
            let fill = Fill::Failed;
            let effects = vec![Effect::OpenGate, Effect::KillProcesses];
            Some((State::Running { fill }, effects))
        }
        (
            State::Waking {
                from: Depth::Deep,
                cause,
                attempt,
                ..
            },
            Event::WakeFailed,
        ) => Some(match attempt {
            Attempt::First => (
                State::Waking {
                    from: Depth::Deep,
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
                fill: Fill::UnderWay { from },
            },
            Event::FillFinished,
        ) => {
            let effects = match from {
                // What was moved out serves the next time too.
                Depth::Light | Depth::Cold => vec![],
                Depth::Deep => vec![Effect::DiscardImages],
            };
            Some((RUNNING, effects))
        }
        (
            State::Running {
                fill: Fill::UnderWay { .. },
            },
            Event::FillFailed,
        ) => {
            let fill = Fill::Failed;
            Some((State::Running { fill }, vec![Effect::KillProcesses]))
        }
        _ => None,
    }
}

/// It sleeps, unless something has asked for it meanwhile.
fn fell_asleep(depth: Depth, wake: Option<WakeCause>, lazy: bool) -> (State, Vec<Effect>) {
    match wake {
        Some(cause) => begin_waking(depth, cause, lazy),
        None => (State::Asleep { depth, lazy }, vec![]),
    }
}

fn begin_waking(from: Depth, cause: WakeCause, lazy: bool) -> (State, Vec<Effect>) {
    let waking = State::Waking {
        from,
        cause,
        attempt: Attempt::First,
        lazy,
    };
    let begin = match from {
        Depth::Light => Effect::BeginMoveIn,
        Depth::Deep => Effect::BeginRestore { lazy },
        Depth::Cold => Effect::BeginStart,
    };
    (waking, vec![begin])
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
            fill: Fill::UnderWay { .. },
        } => vec![Effect::DiscardImages],
        State::FallingAsleep { wake: None, .. } | State::Deepening { wake: None } => {
            vec![Effect::AbortSleep, Effect::OpenGate, Effect::DiscardImages]
        }
        State::FallingAsleep { wake: Some(_), .. }
        | State::Deepening { wake: Some(_) }
        | State::Asleep { .. }
        | State::Waking { .. } => {
            vec![Effect::OpenGate, Effect::DiscardImages]
        }
        State::RestoreFailed => vec![Effect::OpenGate],
    }
}

/// Whether an event is the result of something that was under way.
fn is_report(event: Event) -> bool {
    match event {
        Event::FellAsleep { .. }
        | Event::SleepAborted
        | Event::SleepFailed
        | Event::Woke
        | Event::WakeFailed
        | Event::FillFinished
        | Event::FillFailed => true,
        Event::Started | Event::Sleep(_) | Event::Deepen | Event::Wake(_) | Event::Exited => false,
    }
}

#[cfg(test)]
mod tests;
