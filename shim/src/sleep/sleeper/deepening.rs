//! From light sleep to deep, as the driver sees it: when, and what came of it.

use podmotion_criu_driver::Tasks;
use podmotion_model::idle::{Deepen, LightSleep, deepen};

use super::*;
use crate::sleep::{deepen as attempt, room, trouble::Trouble};

impl Sleeper {
    /// It has fallen into light sleep.
    pub(super) fn sleeps_light_from(&mut self, now: Duration) {
        self.light_since = now;
        self.deepen_tried = None;
        self.deepen_at = Some(Instant::now());
    }

    /// The time has come to ask whether light sleep is to become deep.
    pub(super) fn look_deeper(&mut self) -> Outcome {
        self.deepen_at = None;
        if self.depth() != Some(Depth::Light) {
            return Outcome::Nothing;
        }
        let memory = room::memory().inspect_err(|cause| {
            // Time decides all the same.
            warn!("container {}: {}", self.new.identity.id, Chain(cause));
        });
        let seen = LightSleep {
            now: monotonic(),
            since: self.light_since,
            tried: self.deepen_tried,
            retry: self.deep_back_off.retry().cloned(),
            memory: memory.ok(),
        };
        let least = self.new.node.config.pressure.min_memory;
        match deepen(&self.new.settings, least, &seen) {
            Deepen::Now(why) => {
                self.deepening = Some(why);
                self.event(Event::Deepen)
            }
            Deepen::Later(wait) => {
                self.deepen_at = Some(Instant::now() + wait);
                Outcome::Nothing
            }
            Deepen::Never => Outcome::Nothing,
        }
    }

    pub(super) fn begin_deepening(&mut self) {
        let notify = self.notify.clone();
        let tell = move |result| drop(notify.send(Notice::Deepened(Box::new(result))));
        let moved = match self.memory.take() {
            Some(Memory::Out(moved)) => moved,
            memory => return tell(Err(attempt::Stays::new(memory, Trouble::NotSettled))),
        };
        let stays = |moved, trouble| Err(attempt::Stays::new(Some(Memory::Out(moved)), trouble));
        let config = &self.new.node.config;
        let (min_disk, quota) = (config.pressure.min_disk, config.checkpoint.quota);
        match self.end_work() {
            Ok(work) => self.after_tail(move || {
                tell(match work.dump() {
                    Ok(dump) => attempt::Attempt {
                        dump,
                        moved,
                        min_disk,
                        quota,
                    }
                    .run(),
                    Err(trouble) => stays(moved, trouble),
                });
            }),
            Err(trouble) => tell(stays(moved, trouble)),
        }
    }

    pub(super) fn deepened(&mut self, result: Result<Fallen, Box<attempt::Stays>>) -> Outcome {
        self.control = None;
        let early_exit = self.early_exit.take();
        if self.lifecycle.state() == State::Stopped {
            return Outcome::Nothing;
        }
        let attempt::Stays { memory, trouble } = match result {
            Ok(fallen) => {
                let directory = self.memory_images();
                self.after_tail(move || remove_images(&directory));
                return self.fell_deep(fallen);
            }
            Err(stays) => *stays,
        };
        self.placeholder = None;
        self.deepening = None;
        let (event, why) = self.note_failure("checkpoint", &trouble);
        if event == Event::SleepFailed {
            self.deep_back_off.failed(monotonic(), why);
        }
        if let Some(exit) = early_exit {
            self.thaw_the_dead();
            self.event(Event::Exited);
            return Outcome::Ended(exit);
        }
        if trouble.tasks() != Tasks::Running {
            self.keep_lost(trouble);
            return Outcome::Kill;
        }
        let out = matches!(memory, Some(Memory::Out(_)));
        self.memory = memory;
        if !out {
            // It stands still with all its memory, which is neither sleep nor use.
            self.event(Event::Wake(WakeCause::Failure));
        }
        let outcome = self.event(event);
        if out {
            self.compress_later();
            self.signals_at = Some(Instant::now());
        }
        self.deepen_tried = Some(monotonic());
        self.deepen_at = Some(Instant::now());
        outcome
    }
}
