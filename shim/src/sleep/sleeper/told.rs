//! What the driver tells of the container.

use super::*;

impl Sleeper {
    /// The container's process runs: the first time, or anew.
    pub fn started(&mut self, known: Known) -> Outcome {
        self.pid = known.pid;
        self.known = Some(known.clone());
        self.facts = None;
        self.terminating = None;
        self.awake_since = monotonic();
        if self.cold.is_some() {
            return self.started_anew(known);
        }
        // Of a checkpoint that could not be restored.
        self.asleep = None;
        // Another process, which has not answered any.
        self.probes = Probes::default();
        self.check_at = Some(Instant::now());
        self.event(Event::Started)
    }

    /// Something needs the container awake.
    pub fn wake(&mut self, cause: WakeCause) -> Outcome {
        self.by_hand.wakes(cause);
        self.event(Event::Wake(cause))
    }

    /// Input for its process has come.
    pub fn input_arrived(&mut self) -> Outcome {
        self.used();
        self.wake(WakeCause::Attach)
    }

    /// What keeps it awake for as long as another container is in its PID namespace.
    pub fn lend(&mut self) -> Lease {
        self.used();
        Lease::clone(&self.lent)
    }

    /// How many execs there are. None of them counts as use: a probe can be one.
    pub fn set_execs(&mut self, execs: usize) {
        self.execs = execs;
        self.check_settled();
    }

    /// Whether it is paused; the end of a pause counts as use.
    pub fn set_paused(&mut self, paused: bool) {
        if self.paused && !paused {
            self.used();
        }
        self.paused = paused;
        self.check_soon();
    }
}
