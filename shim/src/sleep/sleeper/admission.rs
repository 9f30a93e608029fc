//! A wake and the node's memory: it begins when there is some, or has waited for long enough.

use podmotion_model::idle::{Admission, MemoryWait, WakeNeed, admit};
use podmotion_model::lifecycle::Attempt;

use super::*;
use crate::sleep::{light, room, status};

/// A wake that waits for memory.
pub(super) struct Waits {
    since: Instant,
    look_at: Instant,
}

impl Waits {
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }
}

impl Sleeper {
    /// The lifecycle wants the wake begun, or the time has come to look for memory once more.
    pub(super) fn admit_wake(&mut self) {
        let State::Waking { attempt, .. } = self.lifecycle.state() else {
            return;
        };
        let waited = self.waits.as_ref().map(|waits| waits.since.elapsed());
        if waited.is_none() && attempt == Attempt::First {
            self.waited = Duration::ZERO;
        }
        let admission = match self.need() {
            Some(need) if attempt == Attempt::First => self.look_for_memory(need, waited),
            _ => Admission::Now,
        };
        if let Admission::Later(wait) = admission {
            let now = Instant::now();
            let waits = self.waits.get_or_insert(Waits {
                since: now,
                look_at: now,
            });
            waits.look_at = now + wait;
            return;
        }
        if let Some(waited) = waited {
            self.waits = None;
            self.waited = waited;
            let id = &self.new.identity.id;
            info!("container {id} wakes now, after it has waited for memory for {waited:?}");
            self.update(|status| status.memory_wait = None);
        }
        self.begin_wake(admission == Admission::Gently);
    }

    /// What the wake takes of the node's memory; `None` where that cannot be told, or is nothing.
    fn need(&self) -> Option<WakeNeed> {
        if let Some(fallen) = &self.asleep {
            let bytes = fallen.report.written.memory_bytes;
            return Some(WakeNeed {
                at_first: bytes,
                in_all: bytes,
            });
        }
        if let Some(cold) = &self.cold {
            return Some(WakeNeed {
                at_first: cold.memory_bytes,
                in_all: cold.memory_bytes,
            });
        }
        let Some(Memory::Out(moved)) = &self.memory else {
            return None;
        };
        let stats = moved.stats();
        let in_all = light::bytes_out(stats) - stats.zero_bytes;
        Some(WakeNeed {
            // Before the first wake nobody knows what is needed first.
            at_first: match moved.working_set_bytes() {
                0 => in_all,
                known => known.min(in_all),
            },
            in_all,
        })
    }

    fn look_for_memory(&self, need: WakeNeed, waited: Option<Duration>) -> Admission {
        let pressure = &self.new.node.config.pressure;
        let room = match room::memory() {
            Ok(room) => room,
            Err(cause) => {
                // Nobody is kept waiting for what cannot be seen.
                warn!("container {}: {}", self.new.identity.id, Chain(&cause));
                return Admission::Now;
            }
        };
        let least = pressure.wake_min_memory;
        let elapsed = waited.unwrap_or_default();
        let admission = admit(least, pressure.wake_wait, need, room, elapsed);
        if waited.is_none() && matches!(admission, Admission::Later(_)) {
            let what = MemoryWait {
                needed: need.at_first,
                room,
                least,
            };
            warn!(
                "container {} does not wake yet: {what}",
                self.new.identity.id
            );
            let since = SystemTime::now();
            self.update(|status| status.memory_wait = Some(status::MemoryWait { since, what }));
        }
        admission
    }
}
