//! Falling asleep, as the driver sees it: the attempt is handed to a thread, its outcome taken in.

use podmotion_criu_driver::{Tasks, Written};
use podmotion_model::manifest::Platform;
use podmotion_model::settings::DeepSleepAfter;

use super::*;
use crate::sleep::{
    deepen, fall, light, placeholder::PlaceholderError, status::LastSleep, still::Target,
    trouble::Trouble,
};

/// What a thread needs to put the container to sleep.
struct Work {
    facts: Arc<Facts>,
    seat: Arc<Seat>,
    node: Arc<Node>,
    identity: Identity,
    pid: i32,
    fixed_ports: Option<BTreeSet<u16>>,
    answer_wait: Option<Duration>,
    images: PathBuf,
    control: DumpControl,
    runtime: tokio::runtime::Handle,
}

impl Work {
    fn target(&self) -> Target<'_> {
        Target {
            facts: &self.facts,
            pid: self.pid,
            seat: &self.seat,
            fixed_ports: self.fixed_ports.as_ref(),
            answer_wait: self.answer_wait,
            runtime: self.runtime.clone(),
        }
    }

    fn platform(&self) -> Result<&Platform, Trouble> {
        self.node.platform().map_err(Trouble::NoCriu)
    }

    fn dump<'a>(
        &'a self,
        platform: &'a Platform,
        enter_cgroups: Option<&'a dyn Fn() -> Result<(), PlaceholderError>>,
    ) -> fall::Attempt<'a> {
        let checkpoint = &self.node.config.checkpoint;
        fall::Attempt {
            target: self.target(),
            criu: self.node.criu(),
            images: &self.images,
            enter_cgroups,
            platform,
            identity: &self.identity,
            lazy_threshold: checkpoint.lazy_threshold.0,
            timeout: checkpoint.dump_timeout,
            control: &self.control,
        }
    }
}

impl Sleeper {
    fn work(&mut self) -> Result<Work, Trouble> {
        let (Some(facts), Some(seat)) = (self.facts.clone(), self.seat.clone()) else {
            return Err(Trouble::NotSettled);
        };
        let control = DumpControl::new().map_err(Trouble::Control)?;
        self.control = Some(control.clone());
        Ok(Work {
            facts,
            seat,
            node: self.new.node.clone(),
            identity: self.new.identity.clone(),
            pid: self.pid,
            fixed_ports: self.fixed_ports(),
            answer_wait: self.new.settings.answer_wait,
            images: self.images(),
            control,
            runtime: tokio::runtime::Handle::current(),
        })
    }

    /// What takes the place of the container's processes, where systemd owns the cgroup.
    fn placeholder(
        &mut self,
        facts: &Facts,
    ) -> Result<Option<impl Fn() -> Result<(), PlaceholderError> + Send + use<>>, Trouble> {
        if !facts.systemd {
            return Ok(None);
        }
        let placeholder = Placeholder::start(&self.new.reaper)?;
        let entry = placeholder.entry(&facts.cgroups);
        self.placeholder = Some(placeholder);
        Ok(Some(entry))
    }

    pub(super) fn begin_move_out(&mut self) {
        let pager = self.pager.take();
        let directory = self.memory_images();
        let notify = self.notify.clone();
        // To itself: the channel is open.
        let tell = move |result| drop(notify.send(Notice::FellLight(Box::new(result))));
        match self.work() {
            Ok(work) => self.after_tail(move || {
                let attempt = light::Attempt {
                    target: work.target(),
                    directory: &directory,
                    pager,
                    control: &work.control,
                };
                tell(attempt.run());
            }),
            Err(trouble) => tell(Err(light::Failed::new(pager, trouble))),
        }
    }

    pub(super) fn begin_dump(&mut self) {
        let notify = self.notify.clone();
        let tell = move |result| drop(notify.send(Notice::Fell(Box::new(result))));
        let prepared = self.work().and_then(|work| {
            let enter = self.placeholder(&work.facts)?;
            Ok((work, enter))
        });
        match prepared {
            Ok((work, enter)) => self.after_tail(move || {
                let enter = enter.as_ref().map(|enter| enter as _);
                let platform = work.platform();
                tell(platform.and_then(|platform| work.dump(platform, enter).run()));
            }),
            Err(trouble) => tell(Err(trouble)),
        }
    }

    pub(super) fn begin_deepening(&mut self) {
        let notify = self.notify.clone();
        let tell = move |result| drop(notify.send(Notice::Deepened(Box::new(result))));
        let Some(memory) = self.memory.take() else {
            return tell(Err(deepen::Stays::new(None, Trouble::NotSettled)));
        };
        let prepared = self.work().and_then(|work| {
            let enter = self.placeholder(&work.facts)?;
            Ok((work, enter))
        });
        let stays = |memory, trouble| Err(deepen::Stays::new(Some(memory), trouble));
        match prepared {
            Ok((work, enter)) => self.after_tail(move || {
                let enter = enter.as_ref().map(|enter| enter as _);
                tell(match work.platform() {
                    Ok(platform) => {
                        let dump = work.dump(platform, enter);
                        deepen::Attempt { dump, memory }.run()
                    }
                    Err(trouble) => stays(memory, trouble),
                });
            }),
            Err(trouble) => tell(stays(memory, trouble)),
        }
    }

    pub(super) fn fell_light(
        &mut self,
        result: Result<light::Fallen, Box<light::Failed>>,
    ) -> Outcome {
        self.control = None;
        let early_exit = self.early_exit.take();
        if self.lifecycle.state() == State::Stopped {
            return Outcome::Nothing;
        }
        let light::Fallen {
            moved,
            ports,
            total,
            frozen,
        } = match result {
            Ok(fallen) => fallen,
            Err(failed) => {
                let light::Failed { pager, trouble } = *failed;
                self.pager = pager;
                if trouble.rules_light_out() {
                    self.not_movable = Some(Chain(&trouble).to_string());
                }
                return self.stayed_awake(trouble, early_exit);
            }
        };
        let last = LastSleep {
            at: SystemTime::now(),
            depth: Depth::Light,
            took: total,
            frozen,
            memory_bytes: light::bytes_out(moved.stats()),
            image_bytes: moved.stats().image_bytes,
            working_set_bytes: moved.working_set_bytes(),
        };
        self.memory = Some(Memory::Out(moved));
        self.fell_asleep(last, &ports);
        let outcome = self.event(Event::FellAsleep { lazy: true });
        self.deepen_later();
        if let Some(exit) = early_exit {
            // Of a process that was killed while it stood still.
            self.thaw_the_dead();
            self.event(Event::Exited);
            return Outcome::Ended(exit);
        }
        outcome
    }

    /// Sets the time at which light sleep is to become deep.
    pub(super) fn deepen_later(&mut self) {
        let DeepSleepAfter::After(after) = self.new.settings.deep_sleep_after else {
            return;
        };
        let after = self.deep_back_off.retry().map_or(after, |retry| {
            retry.until.saturating_sub(monotonic()).max(after)
        });
        self.deepen_at = Some(Instant::now() + after);
    }

    pub(super) fn fell(&mut self, result: Result<Fallen, Trouble>) -> Outcome {
        self.control = None;
        let early_exit = self.early_exit.take();
        if self.lifecycle.state() == State::Stopped {
            return Outcome::Nothing;
        }
        match result {
            Ok(fallen) => self.fell_deep(fallen),
            Err(trouble) => self.stayed_awake(trouble, early_exit),
        }
    }

    pub(super) fn deepened(&mut self, result: Result<Fallen, Box<deepen::Stays>>) -> Outcome {
        self.control = None;
        let early_exit = self.early_exit.take();
        if self.lifecycle.state() == State::Stopped {
            return Outcome::Nothing;
        }
        let deepen::Stays { memory, trouble } = match result {
            Ok(fallen) => {
                let directory = self.memory_images();
                self.after_tail(move || remove_images(&directory));
                return self.fell_deep(fallen);
            }
            Err(stays) => *stays,
        };
        self.placeholder = None;
        let (event, why) = self.note_failure("checkpoint", &trouble);
        if event == Event::SleepFailed {
            self.deep_back_off.failed(monotonic(), why);
        }
        if let Some(exit) = early_exit {
            self.thaw_the_dead();
            self.event(Event::Exited);
            return Outcome::Ended(exit);
        }
        if trouble.tasks() != Tasks::Running {
            self.keep_lost(trouble);
            return Outcome::Kill;
        }
        let out = matches!(memory, Some(Memory::Out(_)));
        self.memory = memory;
        if !out {
            // It stands still with all its memory, which is neither sleep nor use.
            self.event(Event::Wake(WakeCause::Failure));
        }
        let outcome = self.event(event);
        self.deepen_later();
        outcome
    }

    fn fell_deep(&mut self, fallen: Fallen) -> Outcome {
        let report = &fallen.report;
        let Written {
            memory_bytes,
            image_bytes,
        } = report.written;
        let last = LastSleep {
            at: SystemTime::now(),
            depth: Depth::Deep,
            took: fallen.total,
            frozen: report
                .stats
                .as_ref()
                .map_or(fallen.total, |stats| stats.frozen),
            memory_bytes,
            image_bytes,
            working_set_bytes: 0,
        };
        self.pager = None;
        self.deep_back_off.succeeded();
        self.fell_asleep(last, &fallen.ports);
        let lazy = fallen.lazy;
        self.asleep = Some(fallen);
        let outcome = self.event(Event::FellAsleep { lazy });
        crate::sys::trim_heap();
        outcome
    }

    fn fell_asleep(&mut self, last: LastSleep, ports: &BTreeSet<u16>) {
        info!(
            "container {} fell into {} sleep in {:?}: {} bytes of memory freed, images of {} bytes",
            self.new.identity.id,
            last.depth.as_str(),
            last.took,
            last.memory_bytes,
            last.image_bytes,
        );
        let stays_light = self.deep_back_off.retry().is_some();
        self.update(|status| {
            status.last_sleep = Some(last);
            status.counters.sleeps += 1;
            // Why it sleeps no deeper goes on being true.
            if !stays_light {
                status.last_error = None;
            }
            status.ports = ports.iter().copied().collect();
        });
        self.back_off.succeeded();
        for asker in self.asked.drain(..) {
            drop(asker.send(Ok(())));
        }
    }

    /// Says why it does not sleep, or not deeper. Returns what that means, and the words.
    fn note_failure(&mut self, what: &str, trouble: &Trouble) -> (Event, String) {
        let why = Chain(trouble).to_string();
        for asker in self.asked.drain(..) {
            drop(asker.send(Err(Refusal::Sleep(why.clone()))));
        }
        if trouble.is_traffic() {
            let id = &self.new.identity.id;
            info!("container {id} does not fall asleep: {why}");
            self.update(|status| status.counters.sleeps_aborted += 1);
            return (Event::SleepAborted, why);
        }
        self.failed(what, trouble);
        self.update(|status| status.counters.sleeps_failed += 1);
        (Event::SleepFailed, why)
    }

    fn stayed_awake(&mut self, trouble: Trouble, early_exit: Option<Exit>) -> Outcome {
        self.placeholder = None;
        let (event, why) = self.note_failure("sleep", &trouble);
        if event == Event::SleepFailed {
            self.back_off.failed(monotonic(), why);
        }
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
            (None, Tasks::Damaged) => {
                self.keep_lost(trouble);
                Outcome::Kill
            }
        }
    }

    /// Whoever touches memory that is missing has to wait until it is killed.
    fn keep_lost(&mut self, trouble: Trouble) {
        if let Trouble::Lost(lost) = trouble {
            self.lost = Some(lost);
            self.end_processes();
        }
    }
}
