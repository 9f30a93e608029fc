use super::*;
use crate::annotations;
use crate::config::NodeConfig;
use crate::value::ByteSize;

const SECOND: Duration = Duration::from_secs(1);
const LEAST: Share = Share::Percent(10);

fn settings(after: &str) -> Settings {
    let annotations = [(annotations::DEEP_SLEEP_AFTER, after)];
    Settings::resolve(annotations, "web", &NodeConfig::default()).unwrap()
}

/// Asleep for a minute, on a node with this much of 100 bytes left.
fn asleep(free: u64) -> LightSleep {
    LightSleep {
        now: 1060 * SECOND,
        since: 1000 * SECOND,
        memory: Some(Room { free, total: 100 }),
        ..LightSleep::default()
    }
}

fn failed(until: Duration) -> Retry {
    Retry {
        until,
        delay: SECOND,
        failures: 1,
        cause: "it is so".into(),
    }
}

#[test]
fn light_becomes_deep_at_its_time_or_when_memory_is_short() {
    let ask = |after: &str, free| deepen(&settings(after), LEAST, &asleep(free));
    assert_eq!(ask("1m", 50), Deepen::Now(Deepened::Time));
    assert_eq!(ask("61s", 50), Deepen::Later(SECOND));
    assert_eq!(ask("10m", 10), Deepen::Later(30 * SECOND));
    assert_eq!(ask("10m", 9), Deepen::Now(Deepened::Pressure));
    assert_eq!(ask("never", 0), Deepen::Never);
    let unknown = LightSleep {
        memory: None,
        ..asleep(0)
    };
    let later = Deepen::Later(30 * SECOND);
    assert_eq!(deepen(&settings("10m"), LEAST, &unknown), later);
}

#[test]
fn who_has_no_bound_is_not_asked_before_the_time() {
    let none = Share::Bytes(ByteSize(0));
    let answer = deepen(&settings("10m"), none, &asleep(0));
    assert_eq!(answer, Deepen::Later(540 * SECOND));
}

#[test]
fn pressure_does_not_try_again_and_again() {
    let mut seen = asleep(0);
    seen.tried = Some(seen.now);
    let ask = |seen: &LightSleep| deepen(&settings("10m"), LEAST, seen);
    assert_eq!(ask(&seen), Deepen::Later(30 * SECOND));
    seen.now += 30 * SECOND;
    assert_eq!(ask(&seen), Deepen::Now(Deepened::Pressure));
    seen.retry = Some(failed(seen.now + 70 * SECOND));
    assert_eq!(ask(&seen), Deepen::Later(70 * SECOND));
    seen.now += 70 * SECOND;
    assert_eq!(ask(&seen), Deepen::Now(Deepened::Pressure));
}

#[test]
fn after_a_try_the_time_counts_anew() {
    let mut seen = asleep(50);
    seen.tried = Some(seen.now);
    let ask = |seen: &LightSleep| deepen(&settings("1m"), LEAST, seen);
    seen.now += 59 * SECOND;
    assert_eq!(ask(&seen), Deepen::Later(SECOND));
    seen.now += SECOND;
    assert_eq!(ask(&seen), Deepen::Now(Deepened::Time));
}

#[test]
fn what_is_needed_counts_as_taken() {
    let room = Room {
        free: 30,
        total: 100,
    };
    assert!(!room.is_short(LEAST, 20));
    assert!(room.is_short(LEAST, 21));
    assert!(room.is_short(LEAST, u64::MAX));
}
