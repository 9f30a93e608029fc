//! The state of a container's sleep: what it means for who asks, what follows from what happens, and who is told.

use super::*;

impl Sleeper {
    /// Whether a command that needs processes has to wait for [`Outcome::Awake`] or
    /// [`Outcome::Moved`].
    pub fn needs_wake(&self) -> bool {
        matches!(
            self.lifecycle.state(),
            State::FallingAsleep { .. }
                | State::Asleep { .. }
                | State::Deepening { .. }
                | State::Waking { .. }
        )
    }

    /// How deep it sleeps, where it does and nothing is under way. A wake that waits for memory has
    /// not begun.
    pub fn depth(&self) -> Option<Depth> {
        match self.lifecycle.state() {
            State::Asleep { depth, .. } => Some(depth),
            State::Waking { from, .. } if self.waits.is_some() => Some(from),
            _ => None,
        }
    }

    /// Whether it runs, started anew, and is only waited for to listen.
    pub fn is_starting(&self) -> bool {
        let from_cold = matches!(
            self.lifecycle.state(),
            State::Waking {
                from: Depth::Cold,
                ..
            }
        );
        from_cold && self.waits.is_none()
    }

    /// Whether its processes are there although it is not awake.
    pub fn has_processes(&self) -> bool {
        matches!(
            self.lifecycle.state(),
            State::Asleep {
                depth: Depth::Light,
                ..
            } | State::Waking {
                from: Depth::Light,
                ..
            } | State::FallingAsleep {
                into: Depth::Light,
                ..
            }
        )
    }

    /// What a TERM does while it sleeps.
    pub fn discards_on_term(&self) -> bool {
        use podmotion_model::settings::TerminateAsleep;
        self.new.settings.terminate_asleep == TerminateAsleep::Discard
    }

    pub(super) fn event(&mut self, event: Event) -> Outcome {
        let before = self.lifecycle.state();
        match self.lifecycle.handle(event) {
            Ok(effects) => {
                let outcome = self.carry_out(effects);
                self.publish(before);
                outcome
            }
            Err(rejected) => {
                // A late report, such as a wake for a container that ended meanwhile.
                info!("{}: {rejected}", self.new.identity.id);
                Outcome::Nothing
            }
        }
    }

    fn publish(&mut self, before: State) {
        let state = self.lifecycle.state();
        if state == before {
            return;
        }
        self.update(|status| {
            status.state = state;
            status.since = SystemTime::now();
            if !matches!(state, State::Running { .. }) {
                status.awake = None;
            }
            if !matches!(state, State::Waking { .. }) {
                status.memory_wait = None;
            }
        });
        footprint::tidy_soon();
        if !matches!(state, State::Waking { .. }) {
            self.waits = None;
        }
        if !self.is_whole() {
            self.unwatch();
        }
        if !matches!(state, State::Asleep { .. }) {
            self.deepen_at = None;
            self.compress_at = None;
            self.signals_at = None;
        }
        if state == State::Stopped {
            self.check_at = None;
            self.memory = None;
            self.pager = None;
            // The container's output ends once nobody has its pipes any more.
            self.known = None;
            self.facts = None;
            if let Some(seat) = self.seat.take() {
                self.after_tail(move || drop(seat));
            }
            self.probes.give(Verdict::Nobody);
            for asker in self.asked.drain(..).chain(self.wakers.drain(..)) {
                // One who no longer waits needs no answer.
                drop(asker.send(Err(Refusal::Ended)));
            }
        }
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(change);
        self.new.node.registry.changed();
    }

    /// Resources that came while it slept could not be given to it when it woke.
    pub fn update_failed(&self, cause: &dyn std::error::Error) {
        self.failed("update its resources after the wake", cause);
    }

    pub(super) fn failed(&self, what: &str, cause: &dyn std::error::Error) {
        let line = format!("{what}: {}", Chain(cause));
        warn!("container {}: {line}", self.new.identity.id);
        self.update(|status| status.last_error = Some(line));
    }
}
