//! Falling asleep, as the driver sees it: the attempt is handed to a thread, its outcome taken in.

use podmotion_criu_driver::{Tasks, Written};

use super::*;
use crate::sleep::{fall, status::LastSleep};

impl Sleeper {
    pub(super) fn begin_dump(&mut self) {
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

    pub(super) fn fell(&mut self, result: Result<Fallen, fall::Trouble>) -> Outcome {
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
}
