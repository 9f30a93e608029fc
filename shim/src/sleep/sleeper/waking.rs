//! Waking, as the driver sees it: the attempt is handed to a thread, its outcome taken in.

use podmotion_criu_driver::FillFailure;
use podmotion_model::config::TrafficConfig;
use podmotion_model::value::OnRestoreFailure;

use super::*;
use crate::reaper::Expectation;
use crate::sleep::{
    node::work_folder,
    rise::{self, Risen},
    status::LastWake,
};

/// Exit status of a container whose processes cannot be brought back; runc's own for an exit that
/// nobody saw.
const LOST: u32 = 255;

/// Packets that were held for a container and did not reach it.
#[derive(Debug, thiserror::Error)]
#[error("{0} packets did not fit or were refused")]
struct PacketsLost(u64);

impl Sleeper {
    /// What the lifecycle has decided on. `gently`: what can come later is to leave others time to
    /// make room.
    pub(super) fn begin_wake(&mut self, gently: bool) {
        match self.lifecycle.state() {
            State::Waking {
                from: Depth::Light, ..
            } => self.begin_move_in(gently),
            State::Waking {
                from: Depth::Cold, ..
            } => self.begin_start(),
            State::Waking { lazy, .. } => self.begin_restore(lazy),
            _ => {}
        }
    }

    fn begin_restore(&mut self, lazy: bool) {
        let expectation = self.new.reaper.expect();
        let (Some(facts), Some(asleep)) = (self.facts.clone(), &self.asleep) else {
            let result = Box::new(Err(rise::Trouble::NothingToRestore));
            return drop(self.notify.send(Notice::Rose {
                result,
                expectation,
            }));
        };
        let (node, images, mounts) = (self.new.node.clone(), self.images(), asleep.mounts.clone());
        let placeholder = self.placeholder.as_ref().map(Placeholder::pid);
        self.in_thread(move || {
            let attempt = rise::Attempt {
                facts: &facts,
                mounts: &mounts,
                criu: node.criu(),
                images: &images,
                work: &work_folder(&node.config),
                lazy,
                timeout: node.config.checkpoint.restore_timeout,
                placeholder,
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
                let lazy = matches!(self.lifecycle.state(), State::Waking { lazy: true, .. });
                self.update(|status| {
                    status.counters.wakes_failed += 1;
                    status.tallies.wake(Depth::Deep).failed(lazy);
                });
                self.event(Event::WakeFailed)
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
        let outcome = self.runs_again(Depth::Deep, total, lazy);
        if let Err(cause) = record {
            self.failed("runc's record of the container", &cause);
        }
        self.placeholder = None;
        self.asleep = None;
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
        Outcome::Moved { pid, exit }
    }

    /// The processes run: what is true after every sleep.
    pub(super) fn runs_again(&mut self, depth: Depth, took: Duration, lazy: bool) -> Outcome {
        let cause = match self.lifecycle.state() {
            State::Waking { cause, .. } => cause,
            _ => WakeCause::Request,
        };
        let memory_wait = std::mem::take(&mut self.waited);
        let took = took + memory_wait;
        // Held packets go back first, everything else can wait.
        let outcome = self.event(Event::Woke);
        let last = LastWake {
            at: SystemTime::now(),
            depth,
            cause,
            took,
            memory_wait,
            prefetch: Duration::ZERO,
            thaw: Duration::ZERO,
            first_packet_held: None,
            packets: 0,
            lazy,
            fill: None,
        };
        self.update(|status| {
            status.last_wake = Some(last);
            status.counters.wakes += 1;
            status.tallies.wake(depth).succeeded(took, lazy);
        });
        if depth != Depth::Light {
            self.say_woke();
        }
        if self.begins_use(cause) {
            self.awake_since = monotonic();
            self.last_use = None;
        }
        self.cpu = CpuMeter::default();
        // Not at once: the processor is the container's now, to answer whoever woke it.
        self.check_at = Some(Instant::now() + SETTLE);
        outcome
    }

    /// For the log. containerd reads it in that moment, so after light sleep that is when all memory is back.
    pub(super) fn say_woke(&self) {
        let (id, status) = (&self.new.identity.id, self.status.borrow());
        if let Some(LastWake {
            depth, took, cause, ..
        }) = &status.last_wake
        {
            let depth = depth.as_str();
            info!("container {id} woke from {depth} sleep in {took:?} for {cause}");
        }
    }

    /// Whether idle time begins anew with a wake. Where some traffic is ignored, what was held may have
    /// been that: the gate counts it when it is given back, or does not.
    fn begins_use(&self, cause: WakeCause) -> bool {
        let TrafficConfig {
            ignore_networks,
            ignore_user_agents,
        } = &self.new.node.config.traffic;
        let ignores = !(ignore_networks.0.is_empty() && ignore_user_agents.0.is_empty());
        cause.is_use() && !(cause == WakeCause::Traffic && ignores)
    }

    pub(super) fn open_gate(&mut self) {
        if let Some(released) = self.opened.take() {
            return drop(self.notify.send(Notice::Released(released)));
        }
        let (Some(seat), notify) = (self.seat.clone(), self.notify.clone()) else {
            return;
        };
        self.after_tail(move || {
            drop(notify.send(Notice::Released(seat.release())));
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
                    let Some(held) = released.held_for else {
                        return;
                    };
                    status.tallies.first_packet_held.add(held);
                    if let Some(wake) = &mut status.last_wake {
                        wake.first_packet_held = Some(held);
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
                // As for any start anew: it would be in the way of the runtime.
                self.placeholder = None;
                Outcome::ColdStart
            }
        }
    }

    pub(super) fn answer_wakers(&mut self, answer: &Result<(), Refusal>) {
        self.probes.give(match answer {
            Ok(()) => Verdict::Application,
            Err(_) => Verdict::Nobody,
        });
        for waker in self.wakers.drain(..) {
            drop(waker.send(answer.clone()));
        }
    }
}
