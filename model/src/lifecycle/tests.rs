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
    Event::Sleep,
    Event::DumpSucceeded { lazy: false },
];

const ASLEEP_LAZY: [Event; 3] = [
    Event::Started,
    Event::Sleep,
    Event::DumpSucceeded { lazy: true },
];

fn then(before: &[Event], more: &[Event]) -> (State, Vec<Effect>) {
    after(&[before, more].concat())
}

#[test]
fn sleeps_and_wakes() {
    assert_eq!(after(&[Event::Started]), (running(), vec![]));
    assert_eq!(
        after(&[Event::Started, Event::Sleep]),
        (State::FallingAsleep { wake: None }, vec![Effect::BeginDump])
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
        then(&ASLEEP, &[Event::Wake(CAUSE), Event::RestoreSucceeded]),
        (running(), vec![Effect::OpenGate, Effect::DiscardImages])
    );
}

#[test]
fn a_wake_during_the_dump_aborts_it_once() {
    let begun = [Event::Started, Event::Sleep];
    let first = then(&begun, &[Event::Wake(CAUSE)]);
    assert_eq!(first.1, [Effect::AbortDump]);
    let second = then(&begun, &[Event::Wake(CAUSE), Event::Wake(WakeCause::Exec)]);
    assert_eq!(second, (first.0, vec![]), "the first cause stays");
    for result in [Event::DumpAborted, Event::DumpFailed] {
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
            Event::Sleep,
            Event::Wake(CAUSE),
            Event::DumpSucceeded { lazy: true },
        ]),
        (
            State::Waking {
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
    let woken = [Event::Wake(CAUSE), Event::RestoreSucceeded];
    let (state, effects) = then(&ASLEEP_LAZY, &woken);
    assert_eq!(effects, [Effect::OpenGate], "the images are still needed");
    assert!(in_state(state).handle(Event::Sleep).is_err());
    let mut lifecycle = in_state(state);
    assert_eq!(
        lifecycle.handle(Event::FillFinished).unwrap(),
        [Effect::DiscardImages]
    );
    assert_eq!(lifecycle.handle(Event::Sleep).unwrap(), [Effect::BeginDump]);
}

#[test]
fn a_failed_fill_kills_and_keeps_the_images() {
    let (state, _) = then(&ASLEEP_LAZY, &[Event::Wake(CAUSE), Event::RestoreSucceeded]);
    let mut lifecycle = in_state(state);
    assert_eq!(
        lifecycle.handle(Event::FillFailed).unwrap(),
        [Effect::KillProcesses]
    );
    assert!(lifecycle.handle(Event::Sleep).is_err());
    assert_eq!(lifecycle.handle(Event::Exited).unwrap(), []);
    assert_eq!(lifecycle.state(), State::Stopped);
}

#[test]
fn a_failed_restore_is_tried_once_more_without_lazy_pages() {
    let failed = [Event::Wake(CAUSE), Event::RestoreFailed];
    assert_eq!(
        then(&ASLEEP_LAZY, &failed).1,
        [Effect::BeginRestore { lazy: false }]
    );
    let (state, effects) = then(
        &ASLEEP_LAZY,
        &[&failed[..], &[Event::RestoreFailed]].concat(),
    );
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
    use Effect::{AbortDump, DiscardImages, OpenGate};
    let waking = State::Waking {
        cause: CAUSE,
        attempt: Attempt::First,
        lazy: true,
    };
    for (state, effects) in [
        (State::Created, vec![]),
        (running(), vec![]),
        (
            State::FallingAsleep { wake: None },
            vec![AbortDump, OpenGate, DiscardImages],
        ),
        (
            State::FallingAsleep { wake: Some(CAUSE) },
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
        lifecycle.handle(Event::RestoreSucceeded).unwrap(),
        [Effect::KillProcesses]
    );
    assert_eq!(
        lifecycle
            .handle(Event::DumpSucceeded { lazy: true })
            .unwrap(),
        []
    );
    assert!(lifecycle.handle(Event::Exited).is_err());
}

#[test]
fn a_rejection_names_both_sides_and_changes_nothing() {
    let mut lifecycle = Lifecycle::new();
    let rejected = lifecycle.handle(Event::Sleep).unwrap_err();
    assert_eq!(
        rejected.to_string(),
        "Sleep makes no sense while the container is created"
    );
    assert_eq!(lifecycle.state(), State::Created);
}

fn any_event() -> impl Strategy<Value = Event> {
    let cause = prop_oneof![Just(WakeCause::Traffic), Just(WakeCause::Exec)];
    prop_oneof![
        4 => Just(Event::Started),
        4 => Just(Event::Sleep),
        4 => cause.prop_map(Event::Wake),
        4 => any::<bool>().prop_map(|lazy| Event::DumpSucceeded { lazy }),
        2 => Just(Event::DumpAborted),
        2 => Just(Event::DumpFailed),
        4 => Just(Event::RestoreSucceeded),
        3 => Just(Event::RestoreFailed),
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
    aborts_of_this_dump: u32,
    kept_for_diagnosis: bool,
}

impl World {
    fn carry_out(&mut self, effect: Effect, from: State) -> Result<(), TestCaseError> {
        match effect {
            Effect::BeginDump => {
                prop_assert!(!self.gate_shut, "gate shut twice");
                self.gate_shut = true;
                self.aborts_of_this_dump = 0;
                self.images = false;
                self.kept_for_diagnosis = false;
            }
            Effect::AbortDump => {
                self.aborts_of_this_dump += 1;
                prop_assert_eq!(self.aborts_of_this_dump, 1);
            }
            Effect::BeginRestore { .. } => prop_assert!(self.images, "no images to restore"),
            Effect::OpenGate => {
                prop_assert!(self.gate_shut, "gate opened twice in {}", from);
                self.gate_shut = false;
            }
            Effect::DiscardImages => self.images = false,
            Effect::KillProcesses => {
                self.kept_for_diagnosis |= matches!(from, State::Running { .. });
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
            | State::Waking { .. }
            | State::RestoreFailed => true,
        };
        prop_assert_eq!(self.gate_shut, gate_shut, "gate in {}", state);
        let images = match state {
            State::Asleep { .. } | State::Waking { .. } | State::RestoreFailed => true,
            State::Running { fill } => fill != Fill::Complete || self.kept_for_diagnosis,
            State::Stopped => self.kept_for_diagnosis,
            State::Created | State::FallingAsleep { .. } => false,
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
            if let (State::FallingAsleep { .. }, Event::DumpSucceeded { .. }) = (from, event) {
                world.images = true;
            }
            for effect in effects {
                world.carry_out(effect, from)?;
            }
            world.fits(to)?;

            wake_due |= matches!((from, event), (State::FallingAsleep { .. }, Event::Wake(_)));
            prop_assert!(
                !(wake_due && matches!(to, State::Asleep { .. })),
                "a wake was forgotten"
            );
            wake_due &= matches!(to, State::FallingAsleep { .. });
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
