use proptest::prelude::*;

use super::*;

fn any_observation() -> impl Strategy<Value = Observation> {
    let times = (0_u32..500, 0_u32..500, prop::option::of(0_u32..500));
    let flags = prop::collection::vec(prop::bool::weighted(0.1), 9);
    let retry = prop::option::of(0_u32..500);
    (times, flags, retry, prop::option::of(0.0..2.0)).prop_map(|(times, flags, retry, cpu)| {
        Observation {
            now: times.0 * SECOND,
            started_at: times.1 * SECOND,
            last_activity: times.2.map(|at| at * SECOND),
            sandbox: flags[0],
            terminal: flags[1],
            host_network: flags[2],
            paused: flags[3],
            execs: usize::from(flags[4]),
            attached: flags[5],
            filling: flags[6],
            cpu_cores: cpu,
            listening: if flags[7] {
                BTreeSet::new()
            } else {
                BTreeSet::from([80])
            },
            gate_unavailable: flags[8].then(String::new),
            retry: retry.map(|until| Retry {
                until: until * SECOND,
                delay: SECOND,
                failures: 1,
                cause: String::new(),
            }),
            ..Observation::default()
        }
    })
}

proptest! {
    #[test]
    fn recheck_is_never_zero_and_never_too_late(
        seen in any_observation(),
        scaledown in 1_u32..400,
    ) {
        let scaledown_text = format!("{scaledown}s");
        let settings = settings(&[(annotations::SCALEDOWN_DURATION, &scaledown_text)]);
        let Decision::StayAwake { reason, recheck } = decide(&settings, &seen) else {
            let last = seen.last_activity.unwrap_or_default().max(seen.started_at);
            prop_assert!(seen.now >= last + scaledown * SECOND, "slept too early");
            prop_assert!(seen.retry.is_none_or(|retry| seen.now >= retry.until));
            return Ok(());
        };
        let Some(recheck) = recheck else { return Ok(()) };
        prop_assert!(!recheck.is_zero());
        if matches!(reason, AwakeReason::Traffic | AwakeReason::BackOff(_)) {
            let almost = seen.now + recheck - Duration::from_nanos(1);
            let earlier = Observation { now: almost, ..seen.clone() };
            prop_assert_ne!(decide(&settings, &earlier), Decision::Sleep(Depth::Light));
            let at = Observation { now: seen.now + recheck, ..seen };
            if let Decision::StayAwake { reason: next, .. } = decide(&settings, &at) {
                prop_assert_ne!(next.as_str(), reason.as_str(), "asked again for nothing");
            }
        }
    }
}
