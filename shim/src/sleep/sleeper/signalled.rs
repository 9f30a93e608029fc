//! A container in light sleep that somebody sends a signal past containerd.

use super::*;
use crate::sleep::{look, signals};

impl Sleeper {
    /// It stands still, since its processes had `signals` waiting.
    pub(super) fn watch_for_signals(&mut self, signals: Signals) {
        self.signals = signals;
        self.signals_at = Some(Instant::now());
    }

    /// Wakes it if one of its processes has been sent a signal.
    pub(super) fn look_for_signals(&mut self) -> Outcome {
        self.signals_at = None;
        let light = self.depth() == Some(Depth::Light);
        let Some(facts) = self.facts.as_ref().filter(|_| light) else {
            return Outcome::Nothing;
        };
        match look::processes(facts) {
            Ok(processes) if self.signals.have_come(&processes) => self.wake(WakeCause::Signal),
            Ok(_) => {
                self.signals_at = Some(Instant::now() + signals::INTERVAL);
                Outcome::Nothing
            }
            // Once: it would be said every two seconds.
            Err(cause) => {
                let id = &self.new.identity.id;
                warn!(
                    "signals to container {id} wake it no more: {}",
                    Chain(&cause)
                );
                Outcome::Nothing
            }
        }
    }
}
