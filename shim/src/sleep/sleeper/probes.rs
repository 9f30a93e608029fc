//! The kubelet's probes, as the driver sees them: which are known, and what has to be learned.

use podmotion_model::probe::{PortSeen, Request};

use super::*;
use crate::responder::{Asked, Outcome as Answered, Verdict};
use crate::sleep::status::LastProbe;

/// The probes of a container.
#[derive(Default)]
pub(super) struct Probes {
    /// What its application has answered.
    pub book: Book,
    /// Those that wait for it to wake.
    waiting: Vec<oneshot::Sender<Verdict>>,
    /// Since when they reach it in the book's sight while it is awake.
    learning_since: Option<Duration>,
    /// Some were coming at the last look.
    coming: bool,
}

impl Probes {
    /// Takes in what a look has found of a container that is idle since `idle_since`: what has to pass
    /// before it sleeps.
    pub fn pending(
        &mut self,
        seen: &[PortSeen],
        idle_since: Duration,
        now: Duration,
    ) -> Option<Pending> {
        self.coming = !seen.is_empty();
        self.book
            .pending(seen, idle_since, self.learning_since, now)
    }

    /// Its kubelet has probed it lately: what keeps it from standing still may be a probe.
    pub fn are_coming(&self) -> bool {
        self.coming
    }

    /// It falls asleep, idle since `idle_since`.
    pub fn fall_asleep(&mut self, idle_since: Duration) {
        self.book.fall_asleep(idle_since, self.learning_since);
        // They go to the responder from the hold on, and not any more once that has ended.
        self.learning_since = None;
    }

    /// Those that wait get their verdict.
    pub fn give(&mut self, verdict: Verdict) {
        for waiting in self.waiting.drain(..) {
            // A client that has gone needs none.
            let _ = waiting.send(verdict);
        }
    }
}

impl Sleeper {
    /// A probe has come to the responder.
    pub(super) fn probe(&mut self, asked: Asked) -> Outcome {
        let Asked {
            port,
            request,
            verdict,
        } = asked;
        let given = match self.lifecycle.state() {
            State::Running { .. } if request == Request::Tcp => {
                // The port has a listening socket, which is all that it asks.
                let said = "open".to_owned();
                self.probed(Answered {
                    port,
                    request,
                    passed: true,
                    said,
                });
                Verdict::Known
            }
            State::Running { .. } => Verdict::Application,
            State::FallingAsleep { .. }
            | State::Asleep { .. }
            | State::Deepening { .. }
            | State::Waking { .. } => {
                if self.probes.book.knows(port, &request, monotonic()) {
                    self.update(|status| status.probes.answered += 1);
                    Verdict::Known
                } else {
                    let (id, kind) = (&self.new.identity.id, request.kind());
                    info!(
                        "container {id} has to answer a probe of port {port} itself: {kind} {}",
                        request.subject()
                    );
                    self.probes.waiting.push(verdict);
                    return self.wake(WakeCause::Probe);
                }
            }
            State::Created | State::RestoreFailed | State::Stopped => Verdict::Nobody,
        };
        // A client that has gone needs none.
        let _ = verdict.send(given);
        Outcome::Nothing
    }

    /// The application has answered a probe, or should have.
    pub(super) fn probed(&mut self, answered: Answered) {
        let Answered {
            port,
            request,
            passed,
            said,
        } = answered;
        let last = LastProbe {
            at: SystemTime::now(),
            kind: request.kind(),
            subject: request.subject(),
            passed,
            said,
        };
        let proxied = u64::from(request != Request::Tcp);
        let hook = request == Request::Hook;
        self.probes.book.note(port, request, passed, monotonic());
        self.update(|status| {
            status.probes.proxied += proxied;
            if !hook {
                status.probes.last.insert(port, last);
            }
        });
        let waited_for = match &self.status.borrow().awake {
            Some(AwakeReason::ProbePending(pending)) => passed || !pending.failed,
            _ => false,
        };
        if waited_for {
            self.check_soon();
        }
    }

    /// Has probes of the awake container pass through the responder, or no more.
    pub(super) fn learn(&mut self, on: bool) {
        if self.probes.learning_since.is_some() == on {
            return;
        }
        let Some(seat) = self.seat.clone() else {
            return;
        };
        self.probes.learning_since = on.then(monotonic);
        let id = self.new.identity.id.clone();
        self.after_tail(move || {
            if let Err(cause) = seat.learn(on) {
                warn!("container {id}: lead its probes: {}", Chain(&cause));
            }
        });
    }
}
