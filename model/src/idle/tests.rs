mod properties;

use std::collections::BTreeMap;

use super::*;
use crate::annotations;
use crate::config::NodeConfig;
use crate::value::{ByteSize, Share};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn settings(annotations: &[(&str, &str)]) -> Settings {
    Settings::resolve(annotations.iter().copied(), "web", &NodeConfig::default()).unwrap()
}

/// Idle for long, with a port and little CPU: sleeps.
fn idle() -> Observation {
    Observation {
        now: 100 * MINUTE,
        started_at: MINUTE,
        last_activity: Some(50 * MINUTE),
        cpu_cores: Some(0.01),
        listening: BTreeSet::from([8080]),
        ..Observation::default()
    }
}

fn awake(settings: &Settings, seen: &Observation) -> (AwakeReason, Option<Duration>) {
    match decide(settings, seen) {
        Decision::StayAwake { reason, recheck } => (reason, recheck),
        Decision::Sleep(_) => panic!("sleeps: {seen:?}"),
    }
}

#[test]
fn what_was_put_to_sleep_by_hand_and_not_used_since_has_no_idle_time() {
    let woken = Observation {
        now: 50 * MINUTE,
        started_at: 50 * MINUTE,
        ..idle()
    };
    assert_eq!(awake(&settings(&[]), &woken).0, AwakeReason::Starting);
    let by_hand = Observation {
        by_hand: true,
        ..woken
    };
    assert_eq!(
        decide(&settings(&[]), &by_hand),
        Decision::Sleep(Depth::Light)
    );
    // What else keeps it awake does so all the same.
    let unknown = Observation {
        cpu_cores: None,
        ..by_hand.clone()
    };
    assert_eq!(awake(&settings(&[]), &unknown).0, AwakeReason::Starting);
    let exec = Observation {
        execs: 1,
        ..by_hand
    };
    assert_eq!(awake(&settings(&[]), &exec).0, AwakeReason::Exec);
}

#[test]
fn an_idle_container_sleeps() {
    assert_eq!(
        decide(&settings(&[]), &idle()),
        Decision::Sleep(Depth::Light)
    );
    let untouched = Observation {
        last_activity: None,
        ..idle()
    };
    assert_eq!(
        decide(&settings(&[]), &untouched),
        Decision::Sleep(Depth::Light)
    );
}

#[test]
fn recheck_is_the_moment_it_could_sleep() {
    let mut seen = idle();
    seen.last_activity = Some(seen.now - 20 * SECOND);
    let (reason, recheck) = awake(&settings(&[]), &seen);
    assert_eq!((reason, recheck), (AwakeReason::Traffic, Some(40 * SECOND)));

    seen.now += recheck.unwrap() - Duration::from_nanos(1);
    let last = Duration::from_nanos(1);
    assert_eq!(awake(&settings(&[]), &seen).1, Some(last));
    seen.now += last;
    assert_eq!(decide(&settings(&[]), &seen), Decision::Sleep(Depth::Light));
}

#[test]
fn nothing_is_written_to_a_disk_that_is_short() {
    let room = Room {
        free: 500,
        total: 1000,
    };
    let on = |needed| Observation {
        disk: Some(Disk {
            room,
            needed,
            least: Share::Percent(10),
        }),
        ..idle()
    };
    assert_eq!(
        decide(&settings(&[]), &on(400)),
        Decision::Sleep(Depth::Light)
    );
    let (reason, recheck) = awake(&settings(&[]), &on(401));
    assert_eq!(reason.as_str(), "disk-pressure");
    assert_eq!(
        reason.to_string(),
        "an image of up to 401 bytes would leave less than 10% (100 bytes) of the disk, \
         which has 500 bytes left"
    );
    assert_eq!(recheck, Some(30 * SECOND));
}

#[test]
fn activity_before_the_wake_does_not_count() {
    let mut seen = idle();
    seen.started_at = seen.now - 10 * SECOND;
    assert_eq!(
        awake(&settings(&[]), &seen),
        (AwakeReason::Starting, Some(50 * SECOND))
    );
}

#[test]
fn activity_in_the_future_counts_as_activity() {
    let mut seen = idle();
    seen.last_activity = Some(seen.now + SECOND);
    assert_eq!(awake(&settings(&[]), &seen).1, Some(61 * SECOND));
}

#[test]
fn what_never_sleeps_is_not_asked_again() {
    type Change = fn(&mut Observation);
    let changes: [(Change, AwakeReason); 9] = [
        (|seen| seen.sandbox = true, AwakeReason::Sandbox),
        (|seen| seen.host_network = true, AwakeReason::HostNetwork),
        (
            |seen| seen.shared_pid_namespace = true,
            AwakeReason::SharedPidNamespace,
        ),
        (|seen| seen.terminal = true, AwakeReason::Terminal),
        (
            |seen| seen.terminating = Some(15),
            AwakeReason::Terminating { signal: 15 },
        ),
        (|seen| seen.execs = 2, AwakeReason::Exec),
        (|seen| seen.attached = true, AwakeReason::Attached),
        (|seen| seen.paused = true, AwakeReason::Paused),
        (|seen| seen.filling = true, AwakeReason::Filling),
    ];
    for (change, reason) in changes {
        let mut seen = idle();
        change(&mut seen);
        assert_eq!(awake(&settings(&[]), &seen), (reason, None));
    }
    for (key, value, reason) in [
        (annotations::SCALEDOWN_DURATION, "0", AwakeReason::Disabled),
        (
            annotations::CONTAINER_NAMES,
            "admin",
            AwakeReason::NotSelected,
        ),
    ] {
        assert_eq!(awake(&settings(&[(key, value)]), &idle()), (reason, None));
    }
}

#[test]
fn what_can_be_mended_is_looked_at_again() {
    let mut seen = idle();
    seen.gate_unavailable = Some("no pins".to_owned());
    let (reason, recheck) = awake(&settings(&[]), &seen);
    assert_eq!(reason.as_str(), "gate-unavailable");
    assert_eq!(reason.to_string(), "packets cannot be held for it: no pins");
    assert_eq!(recheck, Some(POLL.1));

    let mut seen = idle();
    seen.not_checkpointable = Some("io_uring".to_owned());
    let deep = settings(&[
        (annotations::SCALEDOWN_DURATION, "1ms"),
        (annotations::DEEP_SLEEP_AFTER, "0"),
    ]);
    let (reason, recheck) = awake(&deep, &seen);
    assert_eq!(reason.as_str(), "not-checkpointable");
    assert_eq!(recheck, Some(POLL.0));
}

#[test]
fn light_sleep_comes_first_where_it_can() {
    let with = |after| settings(&[(annotations::DEEP_SLEEP_AFTER, after)]);
    let sleeps = |after, seen: &Observation| decide(&with(after), seen);
    let mut seen = idle();
    for (after, depth) in [
        ("10m", Depth::Light),
        ("never", Depth::Light),
        ("0", Depth::Deep),
    ] {
        assert_eq!(sleeps(after, &seen), Decision::Sleep(depth), "{after}");
    }
    seen.not_checkpointable = Some("io_uring".to_owned());
    assert_eq!(sleeps("10m", &seen), Decision::Sleep(Depth::Light));
    seen.not_movable = Some("32-bit".to_owned());
    assert_eq!(awake(&with("10m"), &seen).0.as_str(), "not-checkpointable");
    seen.not_checkpointable = None;
    assert_eq!(sleeps("10m", &seen), Decision::Sleep(Depth::Deep));
    assert_eq!(awake(&with("never"), &seen).0.as_str(), "not-movable");
}

#[test]
fn without_a_port_nothing_could_wake_it() {
    let mut seen = idle();
    seen.listening.clear();
    assert_eq!(awake(&settings(&[]), &seen).0, AwakeReason::NoPorts);
    let fixed = settings(&[(annotations::PORTS_MAP, "web=80")]);
    assert_eq!(decide(&fixed, &seen), Decision::Sleep(Depth::Light));
}

#[test]
fn a_computing_container_is_not_idle() {
    let mut seen = idle();
    seen.cpu_cores = Some(0.51);
    let (reason, _) = awake(&settings(&[]), &seen);
    assert_eq!(reason.to_string(), "it uses 0.51 CPU cores, more than 0.5");
    seen.cpu_cores = Some(0.5);
    assert_eq!(decide(&settings(&[]), &seen), Decision::Sleep(Depth::Light));
    seen.cpu_cores = None;
    assert_eq!(awake(&settings(&[]), &seen).0, AwakeReason::Starting);
    seen.cpu_cores = Some(64.0);
    let unlimited = settings(&[(annotations::BUSY_CPU, "0")]);
    assert_eq!(decide(&unlimited, &seen), Decision::Sleep(Depth::Light));
}

#[test]
fn a_request_without_an_answer_keeps_it_awake_but_not_for_ever() {
    let mut seen = idle();
    seen.unanswered = Some(70 * SECOND);
    let (reason, recheck) = awake(&settings(&[]), &seen);
    assert_eq!(
        reason.to_string(),
        "a request of 1m10s ago has no answer yet, waited for until it is 2m old"
    );
    // The answer is no event.
    assert_eq!(recheck, Some(30 * SECOND));
    seen.unanswered = Some(119 * SECOND);
    assert_eq!(awake(&settings(&[]), &seen).1, Some(SECOND));
    seen.unanswered = Some(120 * SECOND);
    assert_eq!(decide(&settings(&[]), &seen), Decision::Sleep(Depth::Light));
    seen.unanswered = Some(SECOND);
    let ignored = settings(&[(annotations::ANSWER_WAIT, "0")]);
    assert_eq!(decide(&ignored, &seen), Decision::Sleep(Depth::Light));
}

#[test]
fn who_asks_for_sleep_waits_for_no_time_but_is_told_of_what_stays() {
    let settings = settings(&[]);
    let busy = Observation {
        last_activity: Some(idle().now),
        cpu_cores: Some(4.0),
        retry: Some(Retry {
            until: Duration::MAX,
            failures: 1,
            delay: Duration::from_secs(30),
            cause: "a test".into(),
        }),
        ..idle()
    };
    let asked = |seen: Observation| decide(&settings, &seen.after_a_long_time());
    assert_eq!(asked(busy.clone()), Decision::Sleep(Depth::Light));
    let no_ports = Observation {
        listening: BTreeSet::new(),
        ..busy.clone()
    };
    assert!(matches!(
        asked(no_ports),
        Decision::StayAwake {
            reason: AwakeReason::NoPorts,
            ..
        }
    ));
    let answering = Observation {
        unanswered: Some(SECOND),
        ..busy.clone()
    };
    assert!(matches!(
        asked(answering),
        Decision::StayAwake {
            reason: AwakeReason::Unanswered { .. },
            ..
        }
    ));
    let exec = Observation { execs: 1, ..busy };
    assert!(matches!(
        asked(exec),
        Decision::StayAwake {
            reason: AwakeReason::Exec,
            ..
        }
    ));
}

#[test]
fn a_dry_run_says_when_it_would_have_slept() {
    let dry = settings(&[(annotations::DRY_RUN, "true")]);
    assert_eq!(awake(&dry, &idle()).0, AwakeReason::DryRun);
    let mut seen = idle();
    seen.execs = 1;
    assert_eq!(awake(&dry, &seen).0, AwakeReason::Exec);
}

#[test]
fn what_the_quota_has_refused_is_tried_again_in_a_while() {
    let quota = Quota {
        used: 1,
        needed: 1,
        share: Share::Bytes(ByteSize(1)),
        limit: 1,
    };
    let mut seen = idle();
    seen.over_quota = Some(OverQuota::new(quota, seen.now));
    let (reason, recheck) = awake(&settings(&[]), &seen);
    assert_eq!(reason, AwakeReason::Quota(quota));
    assert_eq!(recheck, Some(POLL.1));
    let asked = decide(&settings(&[]), &seen.clone().after_a_long_time());
    assert_eq!(asked, Decision::Sleep(Depth::Light));
    seen.now += POLL.1;
    assert_eq!(decide(&settings(&[]), &seen), Decision::Sleep(Depth::Light));
}

#[test]
fn a_failed_checkpoint_is_not_tried_again_at_once() {
    let mut seen = idle();
    let mut back_off = BackOff::new(30 * SECOND, 90 * SECOND);
    let mut delays = vec![];
    for _ in 0..4 {
        back_off.failed(seen.now, "Error (criu/files.c:1): no");
        seen.retry = back_off.retry().cloned();
        let (reason, recheck) = awake(&settings(&[]), &seen);
        assert_eq!(reason.as_str(), "back-off");
        assert!(reason.to_string().contains("criu/files.c:1"), "{reason}");
        delays.push(recheck.unwrap().as_secs());
        seen.now += recheck.unwrap();
        assert_eq!(decide(&settings(&[]), &seen), Decision::Sleep(Depth::Light));
    }
    assert_eq!(delays, [30, 60, 90, 90]);
    assert_eq!(back_off.retry().unwrap().failures, 4);
    back_off.succeeded();
    assert_eq!(back_off.retry(), None);
    back_off.failed(seen.now, "again");
    assert_eq!(back_off.retry().unwrap().delay, 30 * SECOND);
}

#[test]
fn a_back_off_of_any_length_does_not_overflow() {
    let mut back_off = BackOff::new(SECOND, Duration::MAX);
    for _ in 0..200 {
        back_off.failed(Duration::MAX, "");
    }
    assert_eq!(back_off.retry().unwrap().until, Duration::MAX);
}

#[test]
fn an_application_that_has_just_answered_two_probes_is_not_busy() {
    let mut meter = CpuMeter::default();
    let ms = Duration::from_millis;
    meter.note(ms(1000), ms(0));
    assert_eq!(meter.note(ms(2000), ms(10)), Some(0.01));
    assert_eq!(meter.note(ms(2010), ms(19)), Some(0.01));
    // What it used meanwhile is counted.
    assert_eq!(meter.note(ms(3000), ms(30)), Some(0.02));
    let mut meter = CpuMeter::default();
    assert_eq!(meter.note(ms(1000), ms(0)), None);
    assert_eq!(meter.note(ms(1010), ms(9)), None, "too early to say");
}

#[test]
fn cpu_is_measured_between_two_looks() {
    let mut meter = CpuMeter::default();
    assert_eq!(meter.note(10 * SECOND, 3 * SECOND), None);
    assert_eq!(meter.note(20 * SECOND, 8 * SECOND), Some(0.5));
    assert_eq!(meter.note(20 * SECOND, 9 * SECOND), Some(0.5));
    assert_eq!(meter.note(30 * SECOND, SECOND), None, "counter went back");
    assert_eq!(meter.note(31 * SECOND, 3 * SECOND), Some(2.0));
}

#[test]
fn names_are_kebab_case_and_unique() {
    let retry = Retry {
        until: SECOND,
        delay: SECOND,
        failures: 1,
        cause: String::new(),
    };
    let cause = String::new();
    let all = [
        AwakeReason::Sandbox,
        AwakeReason::NotSelected,
        AwakeReason::Disabled,
        AwakeReason::HostNetwork,
        AwakeReason::SharedPidNamespace,
        AwakeReason::Terminal,
        AwakeReason::Terminating { signal: 15 },
        AwakeReason::Exec,
        AwakeReason::Attached,
        AwakeReason::Paused,
        AwakeReason::Filling,
        AwakeReason::GateUnavailable {
            cause: cause.clone(),
        },
        AwakeReason::NotMovable {
            cause: cause.clone(),
        },
        AwakeReason::NotCheckpointable { cause },
        AwakeReason::Starting,
        AwakeReason::Traffic,
        AwakeReason::BackOff(retry),
        AwakeReason::NoPorts,
        AwakeReason::BusyCpu {
            cores: 1.0,
            limit: 0.5,
        },
        AwakeReason::Unanswered {
            age: SECOND,
            limit: MINUTE,
        },
        AwakeReason::DryRun,
    ];
    let names: BTreeMap<_, _> = all.iter().map(|reason| (reason.as_str(), ())).collect();
    assert_eq!(names.len(), all.len());
    for name in names.keys() {
        assert!(
            name.bytes().all(|c| c.is_ascii_lowercase() || c == b'-'),
            "{name}"
        );
    }
}

#[test]
fn what_is_stopped_instead_of_checkpointed_keeps_its_connections_first() {
    let stop = settings(&[(annotations::DISABLE_CHECKPOINTING, "true")]);
    let mut seen = idle();
    // None of it is needed to end processes.
    seen.not_movable = Some("io_uring".to_owned());
    seen.not_checkpointable = Some("MPTCP".to_owned());
    assert_eq!(decide(&stop, &seen), Decision::Sleep(Depth::Cold));
    seen.connections = 2;
    let (reason, recheck) = awake(&stop, &seen);
    assert_eq!(reason, AwakeReason::Connections { open: 2 });
    assert!(recheck.is_some(), "nobody tells when they end");
    let kept = settings(&[]);
    let seen = Observation {
        connections: 2,
        ..idle()
    };
    assert_eq!(decide(&kept, &seen), Decision::Sleep(Depth::Light));
}

#[test]
fn a_probe_that_has_not_passed_is_the_last_reason() {
    let pending = Pending {
        port: 8080,
        failed: false,
    };
    let mut seen = Observation {
        probe: Some(pending),
        ..idle()
    };
    let (reason, recheck) = awake(&settings(&[]), &seen);
    assert_eq!(
        (reason.as_str(), recheck),
        ("probe-pending", Some(30 * SECOND))
    );
    assert_eq!(
        reason.to_string(),
        "a probe of port 8080 has not passed since it was last used"
    );
    // Nor does somebody who asks for sleep get it.
    let asked = seen.clone().after_a_long_time();
    assert_eq!(awake(&settings(&[]), &asked).0, reason);
    seen.last_activity = Some(seen.now);
    assert_eq!(awake(&settings(&[]), &seen).0, AwakeReason::Traffic);
}
