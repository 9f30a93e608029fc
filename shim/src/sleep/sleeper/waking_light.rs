//! Waking from light sleep, as the driver sees it. One thread waits for all of it, since each that is started would take a
//! processor from the container.

use podmotion_pager::{FillPolicy, FillStats, Filling};

use super::ending::end_all;
use super::*;
use crate::sleep::light::{self, Rest, RiseTrouble, Risen, Rising};

/// A container that runs again after light sleep.
pub struct RoseLight {
    /// From the request until its processes ran.
    total: Duration,
    /// Of it, the time for what the last wakes had needed.
    prefetch: Duration,
    /// Of it, the time for thawing.
    thaw: Duration,
    /// Its memory, where all of it is there; else a [`Notice::FilledLight`] follows.
    whole: Option<Pager>,
    /// The gate is open.
    released: Result<Released, GateError>,
}

impl Sleeper {
    pub(super) fn begin_move_in(&mut self, gently: bool) {
        let policy = match gently {
            true => light::GENTLY,
            false => FillPolicy::default(),
        };
        let (memory, notify) = (self.memory.take(), self.notify.clone());
        let (Some(facts), Some(seat), Some(memory)) =
            (self.facts.clone(), self.seat.clone(), memory)
        else {
            let result = Box::new(Err(RiseTrouble::Nothing));
            return drop(notify.send(Notice::RoseLight(result)));
        };
        let rising = light::begin_rise(&facts.freezer, memory, policy);
        let id = self.new.identity.id.clone();
        tokio::task::spawn_blocking(move || {
            let (result, filling) = match wait(rising, &seat) {
                Ok((rose, filling)) => (Ok(rose), filling),
                Err(trouble) => (Err(trouble), None),
            };
            drop(notify.send(Notice::RoseLight(Box::new(result))));
            let Some(filling) = filling else { return };
            let result = filling.wait();
            let failed = result.is_err();
            // Why, before the exit that follows.
            drop(notify.send(Notice::FilledLight(Box::new(result))));
            if failed {
                // Here, as the driver may be waiting for a pipe of theirs that one of them
                // holds while it waits for a page.
                end_all(&facts.freezer, &id);
            }
        });
    }

    /// A wake from light sleep has ended, and so has perhaps the container meanwhile.
    pub(super) fn rose_light(&mut self, result: Result<RoseLight, RiseTrouble>) -> Outcome {
        let early_exit = self.early_exit.take();
        let outcome = match result {
            Ok(rose) => self.woke_light(rose),
            Err(trouble) => self.stayed_down(trouble),
        };
        match early_exit {
            Some(exit) => Outcome::Ended(self.ends_with(exit)),
            None => outcome,
        }
    }

    fn woke_light(&mut self, rose: RoseLight) -> Outcome {
        let RoseLight {
            total,
            prefetch,
            thaw,
            whole,
            released,
        } = rose;
        self.opened = Some(released);
        self.runs_again(Depth::Light, total, whole.is_none());
        // It says nothing of any other sleep.
        self.opened = None;
        self.update(|status| {
            if let Some(wake) = &mut status.last_wake {
                wake.prefetch = prefetch;
                wake.thaw = thaw;
            }
        });
        if whole.is_some() {
            self.say_woke();
            self.pager = whole;
            self.event(Event::FillFinished);
        }
        self.answer_wakers(&Ok(()));
        Outcome::Awake
    }

    fn stayed_down(&mut self, trouble: RiseTrouble) -> Outcome {
        self.failed("wake", &trouble);
        self.update(|status| {
            status.counters.wakes_failed += 1;
            status.tallies.wake(Depth::Light).failed(true);
        });
        let why = self.status.borrow().last_error.clone().unwrap_or_default();
        self.answer_wakers(&Err(Refusal::Wake(why)));
        if let RiseTrouble::Lost(lost) = trouble {
            self.lost = Some(lost);
        }
        self.end_processes();
        self.event(Event::WakeFailed)
    }

    pub(super) fn filled_light(
        &mut self,
        result: Result<(Pager, FillStats), FillFailed>,
    ) -> Outcome {
        self.say_woke();
        let outcome = match result {
            Ok(_) if self.lifecycle.state() == State::Stopped => return Outcome::Nothing,
            Ok((pager, stats)) => {
                self.pager = Some(pager);
                self.update(|status| {
                    if let Some(wake) = &mut status.last_wake {
                        wake.fill = Some(Arc::new(stats));
                    }
                });
                self.event(Event::FillFinished)
            }
            Err(lost) => {
                self.failed("bring memory back", &lost);
                self.lost = Some(lost);
                self.event(Event::FillFailed)
            }
        };
        self.check_soon();
        outcome
    }
}

/// Blocks until the container runs or is known not to. What is held is given back meanwhile: the kernel answers for the
/// sockets, which are there.
fn wait(
    rising: Result<Rising, RiseTrouble>,
    seat: &Seat,
) -> Result<(RoseLight, Option<Filling>), RiseTrouble> {
    let before = std::time::Instant::now();
    let let_in = seat.let_in();
    let Risen {
        memory,
        total,
        prefetch,
        thaw,
        at,
    } = rising?.wait()?;
    let steered = seat.learn(false);
    let released = let_in.and_then(|let_in| steered.map(|()| let_in));
    // Whoever sent the first packet has waited until somebody could read it.
    let longer = at.saturating_duration_since(before);
    let released = released.map(|released| Released {
        held_for: released.held_for.map(|held| held + longer),
        ..released
    });
    let (whole, filling) = match memory {
        Rest::Complete(pager) => (Some(pager), None),
        Rest::Filling(filling) => (None, Some(filling)),
    };
    let rose = RoseLight {
        total,
        prefetch,
        thaw,
        whole,
        released,
    };
    Ok((rose, filling))
}
