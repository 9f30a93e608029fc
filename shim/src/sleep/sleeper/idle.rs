//! Whether the container may sleep: looks at it, asks the policy, goes by the answer.

use podmotion_model::{
    idle::{Decision, Disk, Observation, decide, rehearsal_due},
    settings::Ports,
};

use super::*;
use crate::sleep::leftover::Note;
use crate::sleep::look::{LookError, Looked, look};
use crate::sleep::pod::{self, Probing};

/// Between two looks for whether a container in its PID namespace is still there: nothing tells.
const GUESTS: Duration = Duration::from_secs(10);

impl Sleeper {
    /// The time has come to look at the container.
    pub(super) fn check(&mut self) {
        self.check_at = None;
        if !self.is_whole() || self.looking {
            return;
        }
        if self.never_sleeps() {
            return self.decide(&Looked::default());
        }
        self.looking = true;
        self.outdated = false;
        match (&self.facts, &self.seat) {
            (Some(facts), Some(seat)) => {
                let (facts, seat) = (facts.clone(), seat.clone());
                let node = self.new.node.clone();
                let fixed = self.fixed_ports();
                self.in_thread(move || {
                    let images = &node.config.checkpoint.directory;
                    let mut result = look(&facts, &seat, images, fixed.as_ref());
                    if let (Ok(looked), Err(cause)) = (&mut result, node.platform()) {
                        looked.obstacle.get_or_insert(Chain(&cause).to_string());
                    }
                    Notice::Looked(Box::new(result))
                });
            }
            _ => self.settle(),
        }
    }

    /// Whether it runs with all of its memory: the only state to fall asleep from.
    pub(super) fn is_whole(&self) -> bool {
        self.lifecycle.state()
            == (State::Running {
                fill: Fill::Complete,
            })
    }

    /// Whether looking cannot change the answer.
    fn never_sleeps(&self) -> bool {
        let New {
            settings, fixed, ..
        } = &self.new;
        settings.scaledown.is_none()
            || !settings.selected
            || *fixed != Fixed::default()
            || self.uses_host_network()
    }

    fn uses_host_network(&self) -> bool {
        matches!(
            self.unsettled,
            Some(SettleError::Gate(PodGateError::HostNetwork))
        )
    }

    /// Takes a place at the gate and notes what is fixed about the container.
    fn settle(&mut self) {
        let Some(known) = self.known.clone() else {
            return;
        };
        let (node, notify, pid) = (self.new.node.clone(), self.notify.clone(), self.pid);
        let ports = self.fixed_ports();
        // Of before it was started anew. It still has the ports, and what opens it is in the tail.
        let before = self.seat.take();
        let probing = Probing {
            count: self.new.settings.disable_probe_detection,
            grpc: self.new.settings.grpc_probes,
        };
        self.after_tail(move || {
            drop(before);
            let settle = || -> Result<Box<Settled>, SettleError> {
                let bundle = known.bundle.clone();
                let facts = Facts::gather(known)?;
                // First, so that there is no moment in which the gate is open and the note missing.
                let note = Note {
                    shim: std::process::id(),
                    netns: pod::netns_cookie(pid)?,
                    freezer: facts.freezer.clone(),
                };
                note.write(&bundle)?;
                let seat = node
                    .gates
                    .seat(pid, &node.config, probing, notify.clone())?;
                if let Some(ports) = ports {
                    seat.set_ports(&ports, BTreeSet::new())
                        .map_err(PodGateError::from)?;
                }
                Ok(Box::new(Settled { facts, seat }))
            };
            // A driver that has ended needs no notice.
            drop(notify.send(Notice::Settled(settle())));
        });
    }

    /// The ports that the user named.
    pub(super) fn fixed_ports(&self) -> Option<BTreeSet<u16>> {
        match &self.new.settings.ports {
            Ports::Fixed(ports) => Some(ports.clone()),
            Ports::Listening => None,
        }
    }

    /// The result of [`settle`](Self::settle).
    pub(super) fn settled(&mut self, result: Result<Box<Settled>, SettleError>) {
        self.looking = false;
        match result {
            // It ended meanwhile. The facts have its pipes, whose end its reader waits for.
            Ok(settled) if self.lifecycle.state() == State::Stopped => {
                self.after_tail(move || drop(settled));
            }
            Ok(settled) => {
                let Settled { facts, seat } = *settled;
                self.facts = Some(Arc::new(facts));
                self.seat = Some(Arc::new(seat));
                self.unsettled = None;
                self.check();
            }
            Err(cause) => {
                self.unsettled = Some(cause);
                self.decide(&Looked::default());
            }
        }
    }

    /// The result of a look.
    pub(super) fn looked(&mut self, result: Result<Looked, LookError>) {
        self.looking = false;
        if std::mem::take(&mut self.outdated) {
            return self.check();
        }
        match result {
            Ok(looked) => self.decide(&looked),
            Err(cause) => {
                let failed = Some(Chain(&cause).to_string());
                self.decide(&Looked {
                    failed,
                    ..Looked::default()
                });
            }
        }
    }

    fn decide(&mut self, looked: &Looked) {
        if !self.is_whole() {
            return;
        }
        // An answer is a sign of use too, however long after the request it comes.
        if self.answering && looked.unanswered.is_none() {
            self.used();
        }
        let now = monotonic();
        let fixed = self.new.fixed;
        let cpu_cores = looked.cpu.and_then(|used| self.cpu.note(now, used));
        let gate_unavailable = match &self.unsettled {
            Some(cause) if !self.uses_host_network() => Some(Chain(cause).to_string()),
            _ => looked.failed.clone(),
        };
        let mut observation = Observation {
            now,
            started_at: self.awake_since,
            last_activity: looked.last_packet.max(self.last_use),
            by_hand: self.by_hand.lasts(looked.last_packet),
            sandbox: fixed.sandbox,
            terminal: fixed.terminal,
            host_network: self.uses_host_network(),
            shared_pid_namespace: fixed.shared_pid_namespace || Lease::strong_count(&self.lent) > 1,
            paused: self.paused,
            terminating: self.terminating,
            execs: self.execs,
            attached: false,
            filling: false,
            cpu_cores,
            unanswered: looked.unanswered,
            connections: looked.connections,
            listening: looked.listening.clone(),
            gate_unavailable,
            not_movable: self.not_movable.clone(),
            not_checkpointable: looked.obstacle.clone(),
            disk: self.disk(looked),
            over_quota: self.over_quota,
            probe: None,
            retry: self.back_off.retry().cloned(),
        };
        let idle_since = observation.idle_since();
        observation.probe = self.probes.pending(&looked.probes, idle_since, now);
        let settings = &self.new.settings;
        let asked = (!self.asked.is_empty())
            .then(|| decide(settings, &observation.clone().after_a_long_time()));
        let decision = match asked {
            Some(Decision::Sleep(depth)) => Decision::Sleep(depth),
            // It is being asked, and whoever asks for sleep waits for the answer.
            Some(Decision::StayAwake {
                reason: AwakeReason::ProbePending(pending),
                recheck,
            }) if !pending.failed => Decision::StayAwake {
                reason: AwakeReason::ProbePending(pending),
                recheck,
            },
            // Whoever asks is answered when it has come to its end.
            Some(Decision::StayAwake {
                reason: AwakeReason::DryRun,
                ..
            }) if !settings.disable_checkpointing => return self.rehearse(),
            Some(Decision::StayAwake { reason, .. }) => {
                for asker in self.asked.drain(..) {
                    drop(asker.send(Err(Refusal::Awake(reason.to_string()))));
                }
                decide(settings, &observation)
            }
            None => decide(settings, &observation),
        };
        self.answering = matches!(
            decision,
            Decision::StayAwake {
                reason: AwakeReason::Unanswered { .. },
                ..
            }
        );
        match decision {
            Decision::Sleep(_)
                if let Some(what) = looked.under_way.filter(|_| self.asked.is_empty()) =>
            {
                info!(
                    "container {} does not fall asleep: {what}",
                    self.new.identity.id
                );
                match self.probes.are_coming() {
                    true => self.check_again(),
                    false => {
                        self.used();
                        self.check_soon();
                    }
                }
            }
            Decision::Sleep(depth) => {
                self.probes.fall_asleep(idle_since);
                // The attempt reports back; nothing follows for the driver yet.
                self.event(Event::Sleep(depth));
            }
            Decision::StayAwake {
                reason: AwakeReason::DryRun,
                ..
            } if !settings.disable_checkpointing && rehearsal_due(self.rehearsed_at, now) => {
                self.rehearse();
            }
            Decision::StayAwake { reason, recheck } => {
                if let AwakeReason::DiskPressure(_) | AwakeReason::Quota(_) = reason {
                    self.give_up_image();
                }
                self.learn(matches!(reason, AwakeReason::ProbePending(_)));
                let guests = Lease::strong_count(&self.lent) > 1;
                let recheck = recheck.or(guests.then_some(GUESTS));
                let recheck = self.watch_before_sleep(&reason, recheck);
                self.check_at = recheck.map(|after| Instant::now() + after);
                self.stay_awake(reason, &looked.listening);
            }
        }
    }

    /// The room for its image. What the last sleep has left of it is not needed again.
    fn disk(&self, looked: &Looked) -> Option<Disk> {
        let there = self.pager.as_ref().map(Pager::image_bytes);
        // Where it cannot be told there is to be room for all of it.
        let there = there.and_then(Result::ok).unwrap_or_default();
        Some(Disk {
            room: looked.disk?,
            needed: looked.memory.unwrap_or_default().saturating_sub(there),
            least: self.new.node.config.pressure.min_disk,
        })
    }

    /// What a sleep has left on the disk only spares the next one from writing it again.
    fn give_up_image(&mut self) {
        if self.pager.take().is_none() {
            return;
        }
        let directory = self.memory_images();
        self.after_tail(move || {
            if let Err(cause) = podmotion_pager::discard(&directory) {
                error!("{}", Chain(&cause));
            }
        });
    }

    fn stay_awake(&self, reason: AwakeReason, listening: &BTreeSet<u16>) {
        let ports = self.fixed_ports().unwrap_or_else(|| listening.clone());
        let ports: Vec<u16> = ports.into_iter().collect();
        let (known, same) = {
            let status = self.status.borrow();
            let before = status.awake.as_ref();
            let known = before.is_some_and(|before| before.as_str() == reason.as_str());
            (known, before == Some(&reason) && status.ports == ports)
        };
        if !known {
            info!("container {} stays awake: {reason}", self.new.identity.id);
        }
        if !same {
            self.update(|status| {
                if !known {
                    status.awake_since = SystemTime::now();
                }
                status.awake = Some(reason);
                status.ports = ports;
            });
        }
    }

    pub(super) fn in_thread(&self, work: impl FnOnce() -> Notice + Send + 'static) {
        let notify = self.notify.clone();
        tokio::task::spawn_blocking(move || {
            // A driver that has ended needs no notice.
            drop(notify.send(work()));
        });
    }
}
