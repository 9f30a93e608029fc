//! What the lifecycle decides, done; and what comes back of it.

use podmotion_criu_driver::{FillFailure, Tasks, Written};
use podmotion_model::value::OnRestoreFailure;

use super::*;
use crate::chain::Chain;
use crate::gate::{GateError, Released};
use crate::reaper::Expectation;
use crate::sleep::{
    fall::{self, Fallen},
    node::work_folder,
    rise::{self, Risen},
    status::{LastSleep, LastWake},
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
    /// Takes in what happened.
    pub fn handle(&mut self, notice: Notice) -> Outcome {
        match notice {
            Notice::Wanted => return self.event(Event::Wake(WakeCause::Traffic)),
            Notice::Check => self.check(),
            Notice::Looked(result) => self.looked(result),
            Notice::Settled(result) => self.settled(result),
            Notice::Fell(result) => return self.fell(*result),
            Notice::Rose {
                result,
                expectation,
            } => return self.rose(*result, expectation),
            Notice::Released(result) => self.released(result),
            Notice::Filled(result) => return self.filled(result),
            Notice::AskedToSleep(asker) => self.asked_to_sleep(asker),
            Notice::AskedToWake(asker) => return self.asked_to_wake(asker),
        }
        Outcome::Nothing
    }

    fn asked_to_sleep(&mut self, asker: oneshot::Sender<Result<(), Refusal>>) {
        let refuse = |reason: AwakeReason| Err(Refusal::Awake(reason.to_string()));
        let answer = match self.lifecycle.state() {
            State::Running {
                fill: Fill::Complete,
            } => {
                self.asked.push(asker);
                self.outdated = self.looking;
                return self.check();
            }
            State::FallingAsleep { .. } => return self.asked.push(asker),
            State::Asleep { .. } => Ok(()),
            State::Stopped => Err(Refusal::Ended),
            State::Running { .. } | State::Waking { .. } => refuse(AwakeReason::Filling),
            State::Created | State::RestoreFailed => refuse(AwakeReason::Starting),
        };
        drop(asker.send(answer));
    }

    fn asked_to_wake(&mut self, asker: oneshot::Sender<Result<(), Refusal>>) -> Outcome {
        if self.needs_wake() {
            self.wakers.push(asker);
            return self.wake(WakeCause::Request);
        }
        let ended = self.lifecycle.state() == State::Stopped;
        drop(asker.send(if ended { Err(Refusal::Ended) } else { Ok(()) }));
        Outcome::Nothing
    }

    /// Effects in their order. At most one of them has a consequence for the driver.
    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) -> Outcome {
        let mut outcome = Outcome::Nothing;
        for effect in effects {
            match effect {
                Effect::BeginDump => self.begin_dump(),
                Effect::AbortDump => {
                    if let Some(dump) = &self.dump {
                        dump.abort();
                    }
                }
                Effect::BeginRestore { lazy } => self.begin_restore(lazy),
                Effect::OpenGate => self.open_gate(),
                Effect::DiscardImages => {
                    let images = self.images();
                    self.after_tail(move || remove_images(&images));
                }
                Effect::KillProcesses => outcome = Outcome::Kill,
                Effect::FollowRestorePolicy => outcome = self.follow_restore_policy(),
            }
        }
        if self.lifecycle.state() == State::Stopped {
            self.placeholder = None;
        }
        outcome
    }

    fn begin_dump(&mut self) {
        if let Err(trouble) = self.try_begin_dump() {
            // To itself: the channel is open.
            drop(self.notify.send(Notice::Fell(Box::new(Err(trouble)))));
        }
    }

    fn try_begin_dump(&mut self) -> Result<(), fall::Trouble> {
        let (Some(facts), Some(seat)) = (self.facts.clone(), self.seat.clone()) else {
            return Err(fall::Trouble::NotSettled);
        };
        let mut enter_cgroups = None;
        if facts.systemd {
            let placeholder = Placeholder::start(&self.new.reaper)?;
            enter_cgroups = Some(placeholder.entry(&facts.cgroups));
            self.placeholder = Some(placeholder);
        }
        let control = DumpControl::new().map_err(fall::Trouble::Control)?;
        self.dump = Some(control.clone());
        let (node, pid, images) = (self.new.node.clone(), self.pid, self.images());
        let (notify, runtime) = (self.notify.clone(), tokio::runtime::Handle::current());
        let answer_wait = self.new.settings.answer_wait;
        let (fixed_ports, identity) = (self.fixed_ports(), self.new.identity.clone());
        self.after_tail(move || {
            let platform = match node.platform() {
                Ok(platform) => platform,
                Err(cause) => {
                    let trouble = fall::Trouble::NoCriu(cause);
                    return drop(notify.send(Notice::Fell(Box::new(Err(trouble)))));
                }
            };
            let attempt = fall::Attempt {
                facts: &facts,
                pid,
                seat: &seat,
                fixed_ports: fixed_ports.as_ref(),
                answer_wait,
                criu: node.criu(),
                images: &images,
                enter_cgroups: enter_cgroups.as_ref().map(|enter| enter as _),
                platform,
                identity: &identity,
                lazy_threshold: node.config.checkpoint.lazy_threshold.0,
                timeout: node.config.checkpoint.dump_timeout,
                control: &control,
                runtime,
            };
            drop(notify.send(Notice::Fell(Box::new(attempt.run()))));
        });
        Ok(())
    }

    fn fell(&mut self, result: Result<Fallen, fall::Trouble>) -> Outcome {
        self.dump = None;
        let early_exit = self.early_exit.take();
        if self.lifecycle.state() == State::Stopped {
            return Outcome::Nothing;
        }
        match result {
            Ok(fallen) => self.fell_asleep(fallen),
            Err(trouble) => self.stayed_awake(&trouble, early_exit),
        }
    }

    fn fell_asleep(&mut self, fallen: Fallen) -> Outcome {
        let report = &fallen.report;
        let Written {
            memory_bytes,
            image_bytes,
        } = report.written;
        info!(
            "container {} fell asleep in {:?}: {memory_bytes} bytes of memory freed, images of \
             {image_bytes} bytes",
            self.new.identity.id, fallen.total,
        );
        let last = LastSleep {
            at: SystemTime::now(),
            took: fallen.total,
            frozen: report
                .stats
                .as_ref()
                .map_or(fallen.total, |stats| stats.frozen),
            memory_bytes,
            image_bytes,
        };
        let ports = fallen.ports.iter().copied().collect();
        self.update(|status| {
            status.last_sleep = Some(last);
            status.counters.sleeps += 1;
            status.last_error = None;
            status.ports = ports;
        });
        self.back_off.succeeded();
        let lazy = fallen.lazy;
        self.asleep = Some(fallen);
        for asker in self.asked.drain(..) {
            drop(asker.send(Ok(())));
        }
        let outcome = self.event(Event::DumpSucceeded { lazy });
        crate::sys::trim_heap();
        outcome
    }

    fn stayed_awake(&mut self, trouble: &fall::Trouble, early_exit: Option<Exit>) -> Outcome {
        self.placeholder = None;
        let why = Chain(trouble).to_string();
        for asker in self.asked.drain(..) {
            drop(asker.send(Err(Refusal::Sleep(why.clone()))));
        }
        let event = if trouble.is_traffic() {
            info!(
                "container {} does not fall asleep: {why}",
                self.new.identity.id
            );
            self.update(|status| status.counters.sleeps_aborted += 1);
            Event::DumpAborted
        } else {
            self.failed("checkpoint", trouble);
            self.update(|status| status.counters.sleeps_failed += 1);
            self.back_off.failed(monotonic(), why);
            Event::DumpFailed
        };
        self.used();
        self.event(event);
        match (early_exit, trouble.tasks()) {
            (Some(exit), _) => {
                self.event(Event::Exited);
                Outcome::Ended(exit)
            }
            (None, Tasks::Running | Tasks::Lost) => {
                self.check_soon();
                self.answer_wakers(&Ok(()));
                Outcome::Awake
            }
            // Half of it may be missing: it must not go on.
            (None, Tasks::Damaged) => Outcome::Kill,
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

    fn rose(&mut self, result: Result<Risen, rise::Trouble>, expectation: Expectation) -> Outcome {
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

    fn open_gate(&mut self) {
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

    fn released(&mut self, result: Result<Released, GateError>) {
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

    fn filled(&mut self, result: Result<Duration, FillFailure>) -> Outcome {
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

    fn follow_restore_policy(&mut self) -> Outcome {
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

    fn answer_wakers(&mut self, answer: &Result<(), Refusal>) {
        for waker in self.wakers.drain(..) {
            drop(waker.send(answer.clone()));
        }
    }
}
