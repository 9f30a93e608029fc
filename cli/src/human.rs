//! Figures for people.

use bytesize::ByteSize;
use jiff::Timestamp;
use podmotion_proto::client::Verb;
use podmotion_proto::record::Outcome;

/// A size, `62.0 MiB`.
pub fn bytes(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// How long something took, three digits at most: `0.42 ms`, `60 ms`, `1.3 s`.
pub fn took(microseconds: u64) -> String {
    let ms = microseconds as f64 / 1e3;
    match ms {
        ..1.0 => format!("{ms:.2} ms"),
        ..10.0 => format!("{ms:.1} ms"),
        ..1e3 => format!("{ms:.0} ms"),
        ..1e4 => format!("{:.1} s", ms / 1e3),
        _ => format!("{:.0} s", ms / 1e3),
    }
}

/// The same of seconds.
pub fn seconds(seconds: f64) -> String {
    // No longer than a century, not shorter than nothing.
    took((seconds.clamp(0.0, 3e9) * 1e6).round() as u64)
}

/// An age as kubectl writes it, two units at most: `85s`, `3m20s`, `5h3m`, `12d`. Clocks that were set
/// back make it 0.
pub fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |large: i64, unit: char, rest: i64, small: char| match rest {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{rest}{small}"),
    };
    match seconds {
        ..120 => format!("{seconds}s"),
        120..600 => pair(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, 'd', hours % 24, 'h'),
        _ => format!("{days}d"),
    }
}

/// The time since `unix_ms` as an [`age`].
pub fn since(unix_ms: i64, now: Timestamp) -> String {
    age((now.as_millisecond() - unix_ms) / 1000)
}

/// A state with what belongs to it: `running`, `asleep (light)`, or `waking (waits for memory)`.
pub fn state(state: &str, depth: &str, waits: bool) -> String {
    match depth {
        _ if waits => format!("{state} (waits for memory)"),
        "" => state.to_owned(),
        depth => format!("{state} ({depth})"),
    }
}

/// What became of a request for sleep or for a wake, where it did not fail.
pub fn outcome(verb: Verb, outcome: &Outcome) -> String {
    let container = &outcome.container;
    let depth = container.depth.as_deref().unwrap_or_default();
    let state = state(&container.state, depth, container.memory_wait.is_some());
    match (verb, &container.last_sleep, &container.last_wake) {
        (Verb::Sleep, Some(last), _) if outcome.changed => format!(
            "{state} after {}, {} freed, image {}",
            seconds(last.took_seconds),
            bytes(last.memory_bytes),
            bytes(last.image_bytes)
        ),
        (Verb::Wake, _, Some(last)) if outcome.changed => format!(
            "{state} after {}, from {} sleep",
            seconds(last.took_seconds),
            last.depth
        ),
        _ => format!("{state} already"),
    }
}

#[cfg(test)]
mod tests {
    use podmotion_proto::record::{LastSleep, LastWake, Record};

    use super::*;

    #[test]
    fn durations_have_three_digits_at_most() {
        let cases = [
            (0, "0.00 ms"),
            (420, "0.42 ms"),
            (5_340, "5.3 ms"),
            (60_400, "60 ms"),
            (1_300_000, "1.3 s"),
            (75_000_000, "75 s"),
        ];
        for (microseconds, text) in cases {
            assert_eq!(took(microseconds), text);
        }
    }

    #[test]
    fn ages_are_those_of_kubectl() {
        let cases = [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (3_600, "60m"),
            (18_180, "5h3m"),
            (90_000, "25h"),
            (176_400, "2d1h"),
            (864_000, "10d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn sizes_and_ages() {
        assert_eq!(bytes(62 << 20), "62.0 MiB");
        assert_eq!(bytes(512), "512 B");
        let now = Timestamp::from_second(100).unwrap();
        assert_eq!(since(40_000, now), "60s");
    }

    #[test]
    fn what_happened_is_told_and_what_was_so_already_too() {
        let asleep = Outcome {
            container: Record {
                state: "asleep".into(),
                depth: Some("deep".into()),
                last_sleep: Some(LastSleep {
                    took_seconds: 0.075,
                    memory_bytes: 3 << 20,
                    image_bytes: 4 << 20,
                    ..LastSleep::default()
                }),
                last_wake: Some(LastWake {
                    took_seconds: 0.0042,
                    depth: "light".into(),
                    ..LastWake::default()
                }),
                ..Record::default()
            },
            changed: true,
            error: None,
        };
        assert_eq!(
            outcome(Verb::Sleep, &asleep),
            "asleep (deep) after 75 ms, 3.0 MiB freed, image 4.0 MiB"
        );
        let mut again = asleep.clone();
        again.changed = false;
        assert_eq!(outcome(Verb::Sleep, &again), "asleep (deep) already");
        let mut awake = asleep;
        awake.container.state = "running".into();
        awake.container.depth = None;
        assert_eq!(
            outcome(Verb::Wake, &awake),
            "running after 4.2 ms, from light sleep"
        );
    }

    #[test]
    fn a_state_says_how_deep_or_what_it_waits_for() {
        assert_eq!(state("running", "", false), "running");
        assert_eq!(state("asleep", "light", false), "asleep (light)");
        assert_eq!(state("waking", "deep", true), "waking (waits for memory)");
    }
}
