//! Waking, as the driver sees it: the attempt is handed to a thread, its outcome taken in.

use podmotion_criu_driver::FillFailure;
use podmotion_model::value::OnRestoreFailure;

use super::*;
use crate::gate::{GateError, Released};
use crate::reaper::Expectation;
use crate::sleep::{
    node::work_folder,
    rise::{self, Risen},
    status::LastWake,
};

/// Exit status of a container whose processes cannot be brought back; runc's own for an exit that
/// nobody saw.
const LOST: u32 = 255;

/// After a wake, the time until the container is looked at again.
const SETTLE: Duration = Duration::from_secs(1);

/// Packets that were held for a container and did not reach it.
#[derive(Debug, thiserror::Error)]
#[error("{0} packets did not fit or were refused")]
struct PacketsLost(u64);

impl Sleeper {
    pub(super) fn begin_restore(&mut self, lazy: bool) {
        let expectation = self.new.reaper.expect();
        let (Some(facts), Some(asleep)) = (self.facts.clone(), &self.asleep) else {
            let result = Box::new(Err(rise::Trouble::NothingToRestore));
            return drop(self.notify.send(Notice::Rose {
                result,
                expectation,
            }));
        };
        let (node, images, mounts) = (self.new.node.clone(), self.images(), asleep.mounts.clone());
        self.in_thread(move || {
            let attempt = rise::Attempt {
                facts: &facts,
                mounts: &mounts,
                criu: node.criu(),
                images: &images,
                work: &work_folder(&node.config),
                lazy,
                timeout: node.config.checkpoint.restore_timeout,
            };
            Notice::Rose {
                result: Box::new(attempt.run()),
                expectation,
            }
        });
    }

    pub(super) fn rose(
        &mut self,
        result: Result<Risen, rise::Trouble>,
        expectation: Expectation,
    ) -> Outcome {
        match result {
            Ok(risen) => self.woke(risen, expectation),
            Err(trouble) => {
                self.failed("restore", &trouble);
                self.update(|status| status.counters.wakes_failed += 1);
                self.event(Event::RestoreFailed)
            }
        }
    }

    fn woke(&mut self, risen: Risen, expectation: Expectation) -> Outcome {
        let Risen {
            pid,
            total,
            fill,
            record,
            work,
        } = risen;
        let exit = self.new.reaper.watch(pid);
        drop(expectation);
        self.pid = pid;
        let lazy = fill.is_some();
        let cause = match self.lifecycle.state() {
            State::Waking { cause, .. } => cause,
            _ => WakeCause::Request,
        };
        // Held packets go back first, everything else can wait.
        let outcome = self.event(Event::RestoreSucceeded);
        info!(
            "container {} woke in {total:?} for {cause}",
            self.new.identity.id
        );
        if let Err(cause) = record {
            self.failed("runc's record of the container", &cause);
        }
        let last = LastWake {
            at: SystemTime::now(),
            cause,
            took: total,
            first_packet_held: None,
            packets: 0,
            lazy,
        };
        self.update(|status| {
            status.last_wake = Some(last);
            status.counters.wakes += 1;
        });
        self.placeholder = None;
        self.asleep = None;
        self.awake_since = monotonic();
        self.last_use = None;
        self.cpu = CpuMeter::default();
        match fill {
            Some(fill) => {
                self.work = Some(work);
                self.in_thread(move || Notice::Filled(fill.wait()));
            }
            None => self.after_tail(move || drop(work)),
        }
        self.answer_wakers(&Ok(()));
        if let Outcome::Kill = outcome {
            // It ended while it was being restored: nobody waits for this process.
            return Outcome::Kill;
        }
        // Not at once: the processor is the container's now, to answer whoever woke it.
        self.check_at = Some(Instant::now() + SETTLE);
        Outcome::Moved { pid, exit }
    }

    pub(super) fn open_gate(&mut self) {
        let (Some(seat), notify) = (self.seat.clone(), self.notify.clone()) else {
            return;
        };
        self.after_tail(move || {
            drop(notify.send(Notice::Released(seat.release())));
            if let Err(cause) = seat.settle() {
                warn!("take the tap away: {}", Chain(&cause));
            }
        });
    }

    pub(super) fn released(&mut self, result: Result<Released, GateError>) {
        match result {
            Ok(released) => {
                if released.lost > 0 {
                    self.failed("give held packets back", &PacketsLost(released.lost));
                }
                self.update(|status| {
                    status.packets = released.packets;
                    if let Some(wake) = &mut status.last_wake {
                        wake.first_packet_held = released.held_for;
                        wake.packets = released.frames as u64;
                    }
                });
            }
            Err(cause) => self.failed("open the gate", &cause),
        }
    }

    pub(super) fn filled(&mut self, result: Result<Duration, FillFailure>) -> Outcome {
        self.work = None;
        let event = match result {
            Ok(took) => {
                info!(
                    "container {} has all its memory after {took:?}",
                    self.new.identity.id
                );
                Event::FillFinished
            }
            // Its processes are gone: nobody misses the rest.
            Err(_) if self.lifecycle.state() == State::Stopped => return Outcome::Nothing,
            Err(failure) => {
                self.failed("bring memory back", &failure);
                self.guard = Some(failure.guard);
                Event::FillFailed
            }
        };
        let outcome = self.event(event);
        self.check_soon();
        outcome
    }

    pub(super) fn follow_restore_policy(&mut self) -> Outcome {
        let why = self.status.borrow().last_error.clone().unwrap_or_default();
        self.answer_wakers(&Err(Refusal::Wake(why.clone())));
        let id = &self.new.identity.id;
        match self.new.node.config.checkpoint.on_restore_failure {
            OnRestoreFailure::Exit => {
                error!("container {id} cannot be restored and exits with {LOST}: {why}");
                self.end_asleep(LOST)
            }
            OnRestoreFailure::ColdStart => {
                error!("container {id} cannot be restored and starts without its state: {why}");
                self.update(|status| status.counters.cold_starts += 1);
                Outcome::ColdStart
            }
        }
    }

    pub(super) fn answer_wakers(&mut self, answer: &Result<(), Refusal>) {
        for waker in self.wakers.drain(..) {
            drop(waker.send(answer.clone()));
        }
    }
}
