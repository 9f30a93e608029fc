//! Falling asleep, as the driver sees it: the attempt is handed to a thread, its outcome taken in.

use podmotion_criu_driver::{Tasks, Written};
use podmotion_model::idle::{OverQuota, Quota};

use super::*;
use crate::sleep::{
    fall, light, placeholder::PlaceholderError, status::LastSleep, still::Target, stop,
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
}

/// The same, down to where there is no process left.
pub(super) struct EndWork {
    work: Work,
    enter_cgroups: Option<Box<EnterCgroups>>,
    rehearsal: bool,
}

type EnterCgroups = dyn Fn() -> Result<(), PlaceholderError> + Send;

impl EndWork {
    pub(super) fn dump(&self) -> Result<fall::Attempt<'_>, Trouble> {
        let work = &self.work;
        work.node.claim()?;
        let checkpoint = &work.node.config.checkpoint;
        Ok(fall::Attempt {
            target: work.target(),
            criu: work.node.criu(),
            images: &work.images,
            enter_cgroups: self.enter_cgroups.as_ref().map(|enter| &**enter as _),
            platform: work.node.platform().map_err(Trouble::NoCriu)?,
            identity: &work.identity,
            lazy_threshold: checkpoint.lazy_threshold.0,
            timeout: checkpoint.dump_timeout,
            quota: checkpoint.quota,
            control: &work.control,
            rehearsal: self.rehearsal,
        })
    }

    pub(super) fn stop(&self) -> stop::Attempt<'_> {
        stop::Attempt {
            target: self.work.target(),
            enter_cgroups: self.enter_cgroups.as_ref().map(|enter| &**enter as _),
            timeout: self.work.node.config.stop.timeout,
            control: &self.work.control,
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

    pub(super) fn end_work(&mut self) -> Result<EndWork, Trouble> {
        self.unwatch();
        let work = self.work()?;
        let rehearsal = self.new.settings.dry_run;
        let enter_cgroups = match rehearsal {
            true => None,
            false => self.placeholder(&work.facts)?,
        };
        Ok(EndWork {
            work,
            enter_cgroups,
            rehearsal,
        })
    }

    /// What takes the place of the container's processes, where systemd owns the cgroup.
    fn placeholder(&mut self, facts: &Facts) -> Result<Option<Box<EnterCgroups>>, Trouble> {
        if !facts.systemd {
            return Ok(None);
        }
        let placeholder = Placeholder::start(&self.new.reaper)?;
        let entry = placeholder.entry(&facts.cgroups);
        self.placeholder = Some(placeholder);
        Ok(Some(Box::new(entry)))
    }

    pub(super) fn begin_move_out(&mut self) {
        let pager = self.pager.take();
        let watch = self.watch.take();
        let directory = self.memory_images();
        let notify = self.notify.clone();
        // To itself: the channel is open.
        let tell = move |result| drop(notify.send(Notice::FellLight(Box::new(result))));
        match self.work() {
            Ok(work) => self.after_tail(move || {
                if let Err(cause) = work.node.claim() {
                    return tell(Err(light::Failed::new(pager, cause.into())));
                }
                let attempt = light::Attempt {
                    target: work.target(),
                    directory: &directory,
                    pager,
                    watch,
                    quota: work.node.config.checkpoint.quota,
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
        match self.end_work() {
            Ok(work) => self.after_tail(move || tell(work.dump().and_then(|dump| dump.run()))),
            Err(trouble) => tell(Err(trouble)),
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
            signals,
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
            deepened: None,
            took: total,
            frozen,
            memory_bytes: light::bytes_out(moved.stats()),
            image_bytes: moved.stats().image_bytes,
            working_set_bytes: moved.working_set_bytes() + moved.stats().left_bytes,
            left_bytes: moved.stats().left_bytes,
            unread_bytes: moved.stats().unread_bytes,
        };
        self.memory = Some(Memory::Out(moved));
        self.fell_asleep(last, &ports);
        let outcome = self.event(Event::FellAsleep { lazy: true });
        // Of a process that was killed while it stood still.
        if let Some(exit) = early_exit.and_then(|exit| self.init_exited(exit)) {
            return Outcome::Ended(exit);
        }
        self.sleeps_light_from(monotonic());
        self.compress_later();
        self.watch_for_signals(signals);
        outcome
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

    pub(super) fn fell_deep(&mut self, fallen: Fallen) -> Outcome {
        let report = &fallen.report;
        let Written {
            memory_bytes,
            image_bytes,
            ..
        } = report.written;
        let last = LastSleep {
            at: SystemTime::now(),
            depth: Depth::Deep,
            deepened: self.deepening.take(),
            took: fallen.total,
            frozen: report
                .stats
                .as_ref()
                .map_or(fallen.total, |stats| stats.frozen),
            memory_bytes,
            image_bytes,
            working_set_bytes: 0,
            left_bytes: 0,
            unread_bytes: 0,
        };
        self.pager = None;
        self.deep_back_off.succeeded();
        self.fell_asleep(last, &fallen.ports);
        let lazy = fallen.lazy;
        self.asleep = Some(fallen);
        self.event(Event::FellAsleep { lazy })
    }

    pub(super) fn fell_asleep(&mut self, last: LastSleep, ports: &BTreeSet<u16>) {
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
            status.compression.clear();
            status.counters.sleeps += 1;
            status.tallies.sleep(last.depth).succeeded(last.took);
            // Why it sleeps no deeper goes on being true.
            if !stays_light {
                status.last_error = None;
            }
            status.ports = ports.iter().copied().collect();
        });
        self.back_off.succeeded();
        self.over_quota = None;
        if !self.asked.is_empty() {
            self.by_hand.fell_asleep(monotonic());
        }
        for asker in self.asked.drain(..) {
            drop(asker.send(Ok(())));
        }
    }

    /// Says why it does not sleep, or not deeper. Returns what that means, and the words.
    pub(super) fn note_failure(&mut self, what: &str, trouble: &Trouble) -> (Event, String) {
        let why = Chain(trouble).to_string();
        for asker in self.asked.drain(..) {
            drop(asker.send(Err(Refusal::Sleep(why.clone()))));
        }
        let depth = match self.lifecycle.state() {
            State::FallingAsleep { into, .. } => into,
            _ => Depth::Deep,
        };
        if trouble.is_traffic() {
            let id = &self.new.identity.id;
            info!("container {id} does not fall asleep: {why}");
            self.update(|status| {
                status.counters.sleeps_aborted += 1;
                status.tallies.sleep(depth).aborted += 1;
            });
            return (Event::SleepAborted, why);
        }
        self.failed(what, trouble);
        self.update(|status| {
            status.counters.sleeps_failed += 1;
            status.tallies.sleep(depth).failed += 1;
        });
        (Event::SleepFailed, why)
    }

    pub(super) fn stayed_awake(&mut self, trouble: Trouble, early_exit: Option<Exit>) -> Outcome {
        self.placeholder = None;
        if self.new.settings.dry_run
            && early_exit.is_none()
            && trouble.tasks() == Tasks::Running
            && !trouble.is_traffic()
        {
            return self.rehearsed(&trouble);
        }
        if let (Trouble::OverQuota(quota), None) = (&trouble, early_exit) {
            return self.refused_by_quota(*quota);
        }
        let (event, why) = self.note_failure("sleep", &trouble);
        if event == Event::SleepFailed {
            self.back_off.failed(monotonic(), why);
        }
        // What came over the network the gate has counted, unless it was a probe's.
        let unused = match (&trouble, self.lifecycle.state()) {
            (Trouble::Traffic(_), _) => self.probes.are_coming(),
            (_, State::FallingAsleep { wake, .. }) => wake.is_some_and(|cause| !cause.is_use()),
            _ => false,
        };
        if !unused {
            self.used();
        }
        self.event(event);
        match (early_exit, trouble.tasks()) {
            (Some(exit), _) => {
                self.event(Event::Exited);
                Outcome::Ended(exit)
            }
            (None, Tasks::Running | Tasks::Lost) => {
                match unused {
                    true => self.check_again(),
                    false => self.check_soon(),
                }
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

    /// It was not begun: neither a failure nor use.
    fn refused_by_quota(&mut self, quota: Quota) -> Outcome {
        let reason = AwakeReason::Quota(quota);
        for asker in self.asked.drain(..) {
            drop(asker.send(Err(Refusal::Awake(reason.to_string()))));
        }
        self.over_quota = Some(OverQuota::new(quota, monotonic()));
        self.event(Event::SleepFailed);
        self.check_soon();
        self.answer_wakers(&Ok(()));
        Outcome::Awake
    }

    /// Whoever touches memory that is missing has to wait until it is killed.
    pub(super) fn keep_lost(&mut self, trouble: Trouble) {
        if let Trouble::Lost(lost) = trouble {
            self.lost = Some(lost);
            self.end_processes();
        }
    }
}
