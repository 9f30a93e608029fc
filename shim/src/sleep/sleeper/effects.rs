//! What the lifecycle decides, done; and what comes back of it.

use super::*;

impl Sleeper {
    /// Takes in what happened.
    pub fn handle(&mut self, notice: Notice) -> Outcome {
        match notice {
            Notice::Wanted => return self.wake(WakeCause::Traffic),
            Notice::Probe(asked) => return self.probe(asked),
            Notice::Probed(answered) => self.probed(answered),
            Notice::Check => self.check(),
            Notice::Looked(result) => self.looked(*result),
            Notice::Watched(result) => self.watched(*result),
            Notice::Settled(result) => self.settled(result),
            Notice::Deepen => return self.look_deeper(),
            Notice::Compress => self.compress(),
            Notice::Compressed(result) => self.compressed(result),
            Notice::LookForSignals => return self.look_for_signals(),
            Notice::LookForMemory => self.admit_wake(),
            Notice::FellLight(result) => return self.fell_light(*result),
            Notice::FellCold(result) => return self.fell_cold(*result),
            Notice::StartAnew => return Outcome::ColdStart,
            Notice::RoseCold(result) => return self.rose_cold(*result),
            Notice::Fell(result) => return self.fell(*result),
            Notice::Deepened(result) => return self.deepened(*result),
            Notice::RoseLight(result) => return self.rose_light(*result),
            Notice::FilledLight(result) => return self.filled_light(*result),
            Notice::Rose {
                result,
                expectation,
            } => return self.rose(*result, expectation),
            Notice::Released(result) => self.released(result),
            Notice::Filled(result) => return self.filled(result),
            Notice::AskedToSleep(asker) => self.asked_to_sleep(asker),
            Notice::AskedToWake { asker, stay } => return self.asked_to_wake(asker, stay),
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
            State::Asleep { .. } | State::Deepening { .. } => Ok(()),
            State::Stopped => Err(Refusal::Ended),
            State::Running { .. } | State::Waking { .. } => refuse(AwakeReason::Filling),
            State::Created | State::RestoreFailed => refuse(AwakeReason::Starting),
        };
        drop(asker.send(answer));
    }

    fn asked_to_wake(
        &mut self,
        asker: oneshot::Sender<Result<(), Refusal>>,
        stay: bool,
    ) -> Outcome {
        if stay {
            self.new.settings.scaledown = None;
        }
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
                Effect::BeginMoveOut => self.begin_move_out(),
                Effect::BeginDump => self.begin_dump(),
                Effect::BeginStop => self.begin_stop(),
                Effect::BeginDeepening => self.begin_deepening(),
                Effect::AbortSleep => {
                    if let Some(control) = &self.control {
                        control.abort();
                    }
                }
                Effect::BeginMoveIn | Effect::BeginRestore { .. } | Effect::BeginStart => {
                    self.admit_wake();
                }
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
}
