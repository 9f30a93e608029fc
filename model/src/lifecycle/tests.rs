use proptest::prelude::*;

use super::*;

const CAUSE: WakeCause = WakeCause::Traffic;

fn running() -> State {
    State::Running {
        fill: Fill::Complete,
    }
}

fn in_state(state: State) -> Lifecycle {
    Lifecycle { state }
}

fn after(events: &[Event]) -> (State, Vec<Effect>) {
    let mut lifecycle = Lifecycle::new();
    let mut last = vec![];
    for event in events {
        last = lifecycle.handle(*event).unwrap();
    }
    (lifecycle.state(), last)
}

const ASLEEP: [Event; 3] = [
    Event::Started,
    Event::Sleep(Depth::Deep),
    Event::FellAsleep { lazy: false },
];

const ASLEEP_LAZY: [Event; 3] = [
    Event::Started,
    Event::Sleep(Depth::Deep),
    Event::FellAsleep { lazy: true },
];

fn then(before: &[Event], more: &[Event]) -> (State, Vec<Effect>) {
    after(&[before, more].concat())
}

#[test]
fn sleeps_and_wakes() {
    assert_eq!(after(&[Event::Started]), (running(), vec![]));
    assert_eq!(
        after(&[Event::Started, Event::Sleep(Depth::Deep)]),
        (
            State::FallingAsleep {
                into: Depth::Deep,
                wake: None
            },
            vec![Effect::BeginDump]
        )
    );
    let depth = Depth::Deep;
    assert_eq!(
        after(&ASLEEP),
        (State::Asleep { depth, lazy: false }, vec![])
    );
    assert_eq!(
        then(&ASLEEP, &[Event::Wake(CAUSE)]).1,
        [Effect::BeginRestore { lazy: false }]
    );
    assert_eq!(
        then(&ASLEEP, &[Event::Wake(CAUSE), Event::Woke]),
        (running(), vec![Effect::OpenGate, Effect::DiscardImages])
    );
}

#[test]
fn a_wake_during_the_dump_aborts_it_once() {
    let begun = [Event::Started, Event::Sleep(Depth::Deep)];
    let first = then(&begun, &[Event::Wake(CAUSE)]);
    assert_eq!(first.1, [Effect::AbortSleep]);
    let second = then(&begun, &[Event::Wake(CAUSE), Event::Wake(WakeCause::Exec)]);
    assert_eq!(second, (first.0, vec![]), "the first cause stays");
    for result in [Event::SleepAborted, Event::SleepFailed] {
        assert_eq!(
            then(&begun, &[Event::Wake(CAUSE), result]),
            (running(), vec![Effect::OpenGate, Effect::DiscardImages])
        );
    }
}

#[test]
fn a_wake_that_comes_too_late_for_the_abort_restores_at_once() {
    assert_eq!(
        after(&[
            Event::Started,
            Event::Sleep(Depth::Deep),
            Event::Wake(CAUSE),
            Event::FellAsleep { lazy: true },
        ]),
        (
            State::Waking {
                from: Depth::Deep,
                cause: CAUSE,
                attempt: Attempt::First,
                lazy: true,
            },
            vec![Effect::BeginRestore { lazy: true }]
        )
    );
}

#[test]
fn a_lazily_restored_container_sleeps_again_only_when_filled() {
    let woken = [Event::Wake(CAUSE), Event::Woke];
    let (state, effects) = then(&ASLEEP_LAZY, &woken);
    assert_eq!(effects, [Effect::OpenGate], "the images are still needed");
    assert!(in_state(state).handle(Event::Sleep(Depth::Deep)).is_err());
    let mut lifecycle = in_state(state);
    assert_eq!(
        lifecycle.handle(Event::FillFinished).unwrap(),
        [Effect::DiscardImages]
    );
    assert_eq!(
        lifecycle.handle(Event::Sleep(Depth::Deep)).unwrap(),
        [Effect::BeginDump]
    );
}

#[test]
fn a_failed_fill_kills_and_keeps_the_images() {
    let (state, _) = then(&ASLEEP_LAZY, &[Event::Wake(CAUSE), Event::Woke]);
    let mut lifecycle = in_state(state);
    assert_eq!(
        lifecycle.handle(Event::FillFailed).unwrap(),
        [Effect::KillProcesses]
    );
    assert!(lifecycle.handle(Event::Sleep(Depth::Deep)).is_err());
    assert_eq!(lifecycle.handle(Event::Exited).unwrap(), []);
    assert_eq!(lifecycle.state(), State::Stopped);
}

#[test]
fn a_failed_restore_is_tried_once_more_without_lazy_pages() {
    let failed = [Event::Wake(CAUSE), Event::WakeFailed];
    assert_eq!(
        then(&ASLEEP_LAZY, &failed).1,
        [Effect::BeginRestore { lazy: false }]
    );
    let (state, effects) = then(&ASLEEP_LAZY, &[&failed[..], &[Event::WakeFailed]].concat());
    assert_eq!(state, State::RestoreFailed);
    assert_eq!(effects, [Effect::FollowRestorePolicy]);
    // Policy "exit": the images stay. Policy "cold start": the gate opens once.
    assert_eq!(
        in_state(state).handle(Event::Exited).unwrap(),
        [Effect::OpenGate]
    );
    let mut cold = in_state(state);
    assert_eq!(cold.handle(Event::Started).unwrap(), [Effect::OpenGate]);
    assert_eq!(cold.state(), running());
}

#[test]
fn an_exit_cleans_up_what_its_state_had() {
    use Effect::{AbortSleep, DiscardImages, OpenGate};
    let waking = State::Waking {
        from: Depth::Deep,
        cause: CAUSE,
        attempt: Attempt::First,
        lazy: true,
    };
    for (state, effects) in [
        (State::Created, vec![]),
        (running(), vec![]),
        (
            State::FallingAsleep {
                into: Depth::Deep,
                wake: None,
            },
            vec![AbortSleep, OpenGate, DiscardImages],
        ),
        (
            State::FallingAsleep {
                into: Depth::Deep,
                wake: Some(CAUSE),
            },
            vec![OpenGate, DiscardImages],
        ),
        (after(&ASLEEP).0, vec![OpenGate, DiscardImages]),
        (waking, vec![OpenGate, DiscardImages]),
        (State::RestoreFailed, vec![OpenGate]),
    ] {
        let mut lifecycle = in_state(state);
        assert_eq!(lifecycle.handle(Event::Exited).unwrap(), effects, "{state}");
        assert_eq!(lifecycle.state(), State::Stopped);
    }
}

#[test]
fn a_restore_that_comes_too_late_is_killed() {
    let mut lifecycle = in_state(State::Stopped);
    assert_eq!(
        lifecycle.handle(Event::Woke).unwrap(),
        [Effect::KillProcesses]
    );
    assert_eq!(
        lifecycle.handle(Event::FellAsleep { lazy: true }).unwrap(),
        []
    );
    assert!(lifecycle.handle(Event::Exited).is_err());
}

#[test]
fn a_rejection_names_both_sides_and_changes_nothing() {
    let mut lifecycle = Lifecycle::new();
    let rejected = lifecycle.handle(Event::Sleep(Depth::Deep)).unwrap_err();
    assert_eq!(
        rejected.to_string(),
        "Sleep(Deep) makes no sense while the container is created"
    );
    assert_eq!(lifecycle.state(), State::Created);
}

const LIGHT: [Event; 3] = [
    Event::Started,
    Event::Sleep(Depth::Light),
    Event::FellAsleep { lazy: true },
];

#[test]
fn sleeps_light_and_wakes() {
    assert_eq!(
        after(&LIGHT[..2]),
        (
            State::FallingAsleep {
                into: Depth::Light,
                wake: None
            },
            vec![Effect::BeginMoveOut]
        )
    );
    assert_eq!(after(&LIGHT).0.depth(), Some(Depth::Light));
    let woken = [Event::Wake(CAUSE), Event::Woke];
    assert_eq!(then(&LIGHT, &woken[..1]).1, [Effect::BeginMoveIn]);
    let filling = State::Running {
        fill: Fill::UnderWay { from: Depth::Light },
    };
    assert_eq!(then(&LIGHT, &woken), (filling, vec![Effect::OpenGate]));
    assert_eq!(
        in_state(filling).handle(Event::FillFinished).unwrap(),
        [],
        "what was moved out serves the next time too"
    );
}

#[test]
fn light_sleep_becomes_deep() {
    let deepening = [Event::Deepen];
    assert_eq!(
        then(&LIGHT, &deepening),
        (
            State::Deepening { wake: None },
            vec![Effect::BeginDeepening]
        )
    );
    let deep = [Event::Deepen, Event::FellAsleep { lazy: false }];
    assert_eq!(then(&LIGHT, &deep).0.depth(), Some(Depth::Deep));
    let failed = [Event::Deepen, Event::SleepFailed];
    let (state, effects) = then(&LIGHT, &failed);
    assert_eq!(state.depth(), Some(Depth::Light), "it goes on sleeping");
    assert_eq!(effects, [Effect::DiscardImages]);
}

#[test]
fn a_wake_while_sleep_becomes_deep_is_not_forgotten() {
    let wanted = [Event::Deepen, Event::Wake(CAUSE)];
    assert_eq!(then(&LIGHT, &wanted).1, [Effect::AbortSleep]);
    let aborted = [&wanted[..], &[Event::SleepAborted]].concat();
    assert_eq!(
        then(&LIGHT, &aborted).1,
        [Effect::DiscardImages, Effect::BeginMoveIn]
    );
    let late = [&wanted[..], &[Event::FellAsleep { lazy: true }]].concat();
    assert_eq!(then(&LIGHT, &late).1, [Effect::BeginRestore { lazy: true }]);
}

#[test]
fn processes_whose_memory_cannot_be_had_never_run() {
    let failed = [Event::Wake(CAUSE), Event::WakeFailed];
    let (state, effects) = then(&LIGHT, &failed);
    assert_eq!(effects, [Effect::OpenGate, Effect::KillProcesses]);
    let mut lifecycle = in_state(state);
    assert!(lifecycle.handle(Event::Sleep(Depth::Light)).is_err());
    assert_eq!(lifecycle.handle(Event::Exited).unwrap(), []);
}

#[test]
fn what_was_stopped_starts_anew() {
    let stopped = [
        Event::Started,
        Event::Sleep(Depth::Cold),
        Event::FellAsleep { lazy: false },
    ];
    assert_eq!(after(&stopped[..2]).1, [Effect::BeginStop]);
    assert_eq!(after(&stopped).0.depth(), Some(Depth::Cold));
    assert_eq!(
        then(&stopped, &[Event::Deepen]),
        (after(&stopped).0, vec![]),
        "nothing is left to checkpoint"
    );
    let woken = [Event::Wake(CAUSE), Event::Woke];
    assert_eq!(then(&stopped, &woken[..1]).1, [Effect::BeginStart]);
    assert_eq!(then(&stopped, &woken), (running(), vec![Effect::OpenGate]));
    // A wake while its processes end comes too late for them.
    let late = [
        &stopped[..2],
        &[Event::Wake(CAUSE), Event::FellAsleep { lazy: false }],
    ];
    assert_eq!(after(&late.concat()).1, [Effect::BeginStart]);
}

fn any_event() -> impl Strategy<Value = Event> {
    let cause = prop_oneof![Just(WakeCause::Traffic), Just(WakeCause::Exec)];
    prop_oneof![
        4 => Just(Event::Started),
        4 => prop_oneof![Just(Depth::Light), Just(Depth::Deep), Just(Depth::Cold)].prop_map(Event::Sleep),
        2 => Just(Event::Deepen),
        4 => cause.prop_map(Event::Wake),
        4 => any::<bool>().prop_map(|lazy| Event::FellAsleep { lazy }),
        2 => Just(Event::SleepAborted),
        2 => Just(Event::SleepFailed),
        4 => Just(Event::Woke),
        3 => Just(Event::WakeFailed),
        3 => Just(Event::FillFinished),
        1 => Just(Event::FillFailed),
        1 => Just(Event::Exited),
    ]
}

/// What a driver that carries the effects out has in its hands.
#[derive(Debug, Default)]
struct World {
    gate_shut: bool,
    images: bool,
    moved_out: bool,
    aborts: u32,
    kept_for_diagnosis: bool,
}

impl World {
    fn carry_out(&mut self, effect: Effect, from: State) -> Result<(), TestCaseError> {
        match effect {
            Effect::BeginMoveOut | Effect::BeginDump | Effect::BeginStop => {
                prop_assert!(!self.gate_shut, "gate shut twice");
                self.gate_shut = true;
                self.aborts = 0;
                if effect == Effect::BeginDump {
                    self.images = false;
                    self.kept_for_diagnosis = false;
                }
            }
            Effect::BeginDeepening => {
                prop_assert!(self.gate_shut && self.moved_out, "not in light sleep");
                self.aborts = 0;
                self.images = false;
                self.kept_for_diagnosis = false;
            }
            Effect::AbortSleep => {
                self.aborts += 1;
                prop_assert_eq!(self.aborts, 1);
            }
            Effect::BeginMoveIn => {
                prop_assert!(self.moved_out, "nothing to move in");
                self.moved_out = false;
            }
            Effect::BeginRestore { .. } => prop_assert!(self.images, "no images to restore"),
            Effect::BeginStart => prop_assert!(!self.moved_out, "memory is left"),
            Effect::OpenGate => {
                prop_assert!(self.gate_shut, "gate opened twice in {}", from);
                self.gate_shut = false;
            }
            Effect::DiscardImages => {
                self.images = false;
                self.kept_for_diagnosis = false;
            }
            Effect::KillProcesses => {
                let runs = matches!(from, State::Running { .. });
                self.kept_for_diagnosis |= runs && self.images;
            }
            Effect::FollowRestorePolicy => self.kept_for_diagnosis = true,
        }
        Ok(())
    }

    fn fits(&self, state: State) -> Result<(), TestCaseError> {
        let gate_shut = match state {
            State::Created | State::Running { .. } | State::Stopped => false,
            State::FallingAsleep { .. }
            | State::Asleep { .. }
            | State::Deepening { .. }
            | State::Waking { .. }
            | State::RestoreFailed => true,
        };
        prop_assert_eq!(self.gate_shut, gate_shut, "gate in {}", state);
        let deep = Depth::Deep;
        let images = match state {
            State::Asleep { depth, .. } | State::Waking { from: depth, .. } if depth == deep => {
                true
            }
            State::Running {
                fill: Fill::UnderWay { from },
            } if from == deep => true,
            State::RestoreFailed => true,
            _ => self.kept_for_diagnosis,
        };
        prop_assert_eq!(self.images, images, "images in {}", state);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_sequence_keeps_the_invariants(events in prop::collection::vec(any_event(), 0..80)) {
        let mut lifecycle = Lifecycle::new();
        let mut world = World::default();
        let mut wake_due = false;
        for event in events {
            let from = lifecycle.state();
            let handled = lifecycle.handle(event);
            let to = lifecycle.state();
            let Ok(effects) = handled else {
                prop_assert_eq!(from, to, "a rejected event changed the state");
                continue;
            };
            match (from, event) {
                (
                    State::FallingAsleep {
                        into: Depth::Light, ..
                    },
                    Event::FellAsleep { .. },
                ) => world.moved_out = true,
                (
                    State::FallingAsleep {
                        into: Depth::Cold, ..
                    },
                    Event::FellAsleep { .. },
                ) => {}
                (State::FallingAsleep { .. }, Event::FellAsleep { .. }) => world.images = true,
                (State::Deepening { .. }, Event::FellAsleep { .. }) => {
                    (world.images, world.moved_out) = (true, false);
                }
                _ => {}
            }
            for effect in effects {
                world.carry_out(effect, from)?;
            }
            world.fits(to)?;

            let begun = |state| {
                matches!(state, State::FallingAsleep { .. } | State::Deepening { .. })
            };
            wake_due |= begun(from) && matches!(event, Event::Wake(_));
            prop_assert!(
                !(wake_due && matches!(to, State::Asleep { .. })),
                "a wake was forgotten"
            );
            wake_due &= begun(to);
            prop_assert!(from != State::Stopped || to == State::Stopped);
        }
    }

    /// Whatever comes, a container can always get back to rest: nothing is a dead end.
    #[test]
    fn every_state_leads_out(events in prop::collection::vec(any_event(), 0..40)) {
        let mut lifecycle = Lifecycle::new();
        for event in events {
            lifecycle.handle(event).ok();
        }
        if lifecycle.state() != State::Stopped {
            prop_assert!(lifecycle.handle(Event::Exited).is_ok());
            prop_assert_eq!(lifecycle.state(), State::Stopped);
        }
    }
}
