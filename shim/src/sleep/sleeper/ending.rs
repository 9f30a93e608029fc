//! The end of a container that sleeps, or whose processes end while it does.

use podmotion_criu_driver::Freezer;

use super::*;

/// Time for killed processes to go.
const END: Duration = Duration::from_secs(10);

/// Kills all processes of the container `id`, which may be frozen. None runs once more. Blocks.
pub(super) fn end_all(freezer: &Path, id: &str) {
    let ended = Freezer::new(freezer).and_then(|all| all.end_processes(END));
    if let Err(cause) = ended {
        error!("end container {id}: {}", Chain(&cause));
    }
}

impl Sleeper {
    /// The container in light sleep is to end as if its process had ended with `status`. Its exit
    /// follows.
    pub fn kill_light(&mut self, status: u32) {
        self.ended_as = Some(status);
        self.end_processes();
    }

    /// The container's init has ended while it was in light sleep or on the way there. What is left
    /// of it ends only in a thawed cgroup, and the runtime takes a frozen one for paused.
    pub(super) fn thaw_the_dead(&self) {
        let light = match self.lifecycle.state() {
            State::Asleep { depth, .. } | State::Waking { from: depth, .. } => {
                depth == Depth::Light
            }
            State::FallingAsleep { .. } | State::Deepening { .. } => true,
            _ => false,
        };
        let (true, Some(facts)) = (light, &self.facts) else {
            return;
        };
        if let Err(cause) = Freezer::new(&facts.freezer).and_then(|all| all.thaw()) {
            let id = &self.new.identity.id;
            warn!("thaw container {id} after its end: {}", Chain(&cause));
        }
    }

    /// [`end_all`], in a thread.
    pub(super) fn end_processes(&mut self) {
        let Some(facts) = self.facts.clone() else {
            return;
        };
        let id = self.new.identity.id.clone();
        self.after_tail(move || end_all(&facts.freezer, &id));
    }

    /// The container, which has no processes, is to end as if its process had ended with `status`.
    pub fn end_asleep(&mut self, status: u32) -> Outcome {
        match self.event(Event::Exited) {
            Outcome::Nothing => Outcome::Ended(Exit {
                pid: self.pid,
                status,
                at: SystemTime::now(),
            }),
            other => other,
        }
    }

    /// The init process `exit.pid` has ended. Returns the exit if it is the container's; the end of
    /// a process that a dump removed, or that was told to end, is not.
    pub fn init_exited(&mut self, exit: Exit) -> Option<Exit> {
        if self.was_stopped() {
            return None;
        }
        match self.lifecycle.state() {
            State::FallingAsleep { .. } | State::Deepening { .. } => {
                self.early_exit = Some(exit);
                None
            }
            // What is told of the wake comes before the end.
            State::Waking {
                from: Depth::Light, ..
            } if self.waits.is_none() => {
                self.early_exit = Some(exit);
                None
            }
            State::Asleep {
                depth: Depth::Deep, ..
            }
            | State::Waking {
                from: Depth::Deep, ..
            } => None,
            State::Created
            | State::Running { .. }
            | State::Asleep { .. }
            | State::Waking { .. }
            | State::RestoreFailed
            | State::Stopped => Some(self.ends_with(exit)),
        }
    }

    /// The container has ended. Returns how, to whoever asks.
    pub(super) fn ends_with(&mut self, mut exit: Exit) -> Exit {
        self.guard = None;
        if let Some(lost) = self.lost.take() {
            // Nobody is left to miss it.
            lost.abandon();
        }
        exit.status = self.ended_as.take().unwrap_or(exit.status);
        self.thaw_the_dead();
        self.event(Event::Exited);
        exit
    }
}
