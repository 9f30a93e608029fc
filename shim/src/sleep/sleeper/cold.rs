//! Stopping instead of sleeping, as the driver sees it: the processes are told to end, and the
//! container's program is started anew when it is wanted.

use super::*;
use crate::sleep::{
    status::LastSleep,
    stop::{self, StartTrouble, Started, Stopped},
    trouble::Trouble,
};

/// A container without processes.
pub(super) struct Cold {
    listened: BTreeSet<u16>,
    /// Bytes of memory that it had, and will want again.
    pub(super) memory_bytes: u64,
    /// Its process has ended, and the driver was not told of that yet.
    exit_due: bool,
    /// When its start was begun.
    begun: Instant,
}

impl Sleeper {
    pub(super) fn begin_stop(&mut self) {
        let notify = self.notify.clone();
        // To itself: the channel is open.
        let tell = move |result| drop(notify.send(Notice::FellCold(Box::new(result))));
        match self.end_work() {
            Ok(work) => self.after_tail(move || tell(work.stop().run())),
            Err(trouble) => tell(Err(trouble)),
        }
    }

    pub(super) fn fell_cold(&mut self, result: Result<Stopped, Trouble>) -> Outcome {
        self.control = None;
        let early_exit = self.early_exit.take();
        if self.lifecycle.state() == State::Stopped {
            return Outcome::Nothing;
        }
        let stopped = match result {
            Ok(stopped) => stopped,
            Err(trouble) => return self.stayed_awake(trouble, early_exit),
        };
        let last = LastSleep {
            at: SystemTime::now(),
            depth: Depth::Cold,
            deepened: None,
            took: stopped.total,
            frozen: stopped.total,
            memory_bytes: stopped.memory_bytes,
            image_bytes: 0,
            working_set_bytes: 0,
            left_bytes: 0,
            unread_bytes: 0,
        };
        self.cold = Some(Cold {
            listened: stopped.listened,
            memory_bytes: stopped.memory_bytes,
            exit_due: early_exit.is_none(),
            begun: Instant::now(),
        });
        self.fell_asleep(last, &stopped.ports);
        self.event(Event::FellAsleep { lazy: false })
    }

    /// Whether this is the end that it was told to come to.
    pub(super) fn was_stopped(&mut self) -> bool {
        let cold = self.cold.as_mut();
        cold.is_some_and(|cold| std::mem::take(&mut cold.exit_due))
    }

    /// The driver starts its program, once it has heard of it.
    pub(super) fn begin_start(&mut self) {
        if let Some(cold) = &mut self.cold {
            cold.begun = Instant::now();
        }
        // It would be in the way of the runtime, which makes the cgroup anew.
        self.placeholder = None;
        drop(self.notify.send(Notice::StartAnew));
    }

    /// Its program runs: it is held back from nobody once it listens as it did before.
    pub(super) fn started_anew(&mut self, known: Known) -> Outcome {
        let (Some(seat), Some(cold)) = (self.seat.clone(), &mut self.cold) else {
            return Outcome::Nothing;
        };
        // The driver knows the new process alone: an exit from now on is that one's.
        cold.exit_due = false;
        let (ports, timeout) = (
            cold.listened.clone(),
            self.new.node.config.stop.start_timeout,
        );
        self.in_thread(move || {
            let start = stop::Start {
                known,
                seat: &seat,
                ports: &ports,
                timeout,
            };
            Notice::RoseCold(Box::new(start.wait()))
        });
        Outcome::Nothing
    }

    pub(super) fn rose_cold(&mut self, result: Result<Started, StartTrouble>) -> Outcome {
        let (State::Waking { .. }, Some(cold)) = (self.lifecycle.state(), self.cold.take()) else {
            // It ended while it was waited for.
            return Outcome::Nothing;
        };
        match result {
            Ok(Started { facts, missing }) => {
                self.facts = Some(Arc::new(facts));
                if !missing.is_empty() {
                    let waited = self.new.node.config.stop.start_timeout;
                    self.failed("start anew", &NotListening { missing, waited });
                }
            }
            // It runs, and is looked at anew.
            Err(trouble) => self.failed("look at what was started anew", &trouble),
        }
        let outcome = self.runs_again(Depth::Cold, cold.begun.elapsed(), false);
        self.answer_wakers(&Ok(()));
        // Another process, which has not answered any.
        self.probes = Probes::default();
        match outcome {
            Outcome::Kill => Outcome::Kill,
            _ => Outcome::Awake,
        }
    }
}

/// A container that was started anew and is not as it was.
#[derive(Debug, thiserror::Error)]
#[error("after {waited:?} it does not listen on {missing:?}, as it did before")]
struct NotListening {
    missing: BTreeSet<u16>,
    waited: Duration,
}
