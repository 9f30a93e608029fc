//! What is worth an event: told by the shims' counts, so that one change that was not seen by itself is
//! told all the same, and a manager that starts anew repeats none.

use podmotion_proto::shim::v1::Container;

/// An event about a container. Normal ones read the same each time: the API server counts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Something went wrong.
    pub warning: bool,
    /// A word.
    pub reason: &'static str,
    /// What was done or tried.
    pub action: &'static str,
    /// For people.
    pub text: String,
}

/// The API server takes no more of a text.
const TEXT: usize = 1024;

/// What was seen of a container last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    sleeps: u64,
    sleeps_failed: u64,
    wakes: u64,
    wakes_failed: u64,
    cold_starts: u64,
    waits: bool,
}

impl Seen {
    /// What there is to see now.
    pub fn of(container: &Container) -> Self {
        let counters = &container.counters;
        Self {
            sleeps: counters.sleeps,
            sleeps_failed: counters.sleeps_failed,
            wakes: counters.wakes,
            wakes_failed: counters.wakes_failed,
            cold_starts: counters.cold_starts,
            waits: container.memory_wait.is_some(),
        }
    }
}

/// What has happened to a container since, in its order.
pub fn notes(before: Seen, container: &Container) -> Vec<Note> {
    let now = Seen::of(container);
    let name = &container.name;
    let note = |action, reason, warning, text: String| Note {
        warning,
        reason,
        action,
        text: cut(text),
    };
    let error = match container.last_error.as_str() {
        "" => "the cause was overtaken by a sleep that succeeded",
        error => error,
    };
    let mut notes = Vec::new();
    if now.sleeps_failed > before.sleeps_failed {
        let text = format!("Container {name} did not fall asleep: {error}");
        notes.push(note("Sleep", "SleepFailed", true, text));
    }
    if now.wakes_failed > before.wakes_failed {
        let text = format!("Container {name} could not be woken: {error}");
        notes.push(note("Wake", "WakeFailed", true, text));
    }
    if now.cold_starts > before.cold_starts {
        let text = format!("Container {name} was started without its state: {error}");
        notes.push(note("Wake", "ColdStart", true, text));
    }
    if now.waits && !before.waits {
        let detail = &container.memory_wait.detail;
        let text = format!("The wake of container {name} waits for memory: {detail}");
        notes.push(note("Wake", "WaitsForMemory", true, text));
    }
    let slept = (now.sleeps > before.sleeps).then(|| {
        let last = &container.last_sleep;
        let note = match last.deepened.as_str() {
            "" => note(
                "Sleep",
                "FellAsleep",
                false,
                format!("Container {name} fell into {} sleep", last.depth),
            ),
            why => note(
                "Sleep",
                "FellDeeper",
                false,
                format!("Container {name} went from light to deep sleep ({why})"),
            ),
        };
        (last.at_unix_ms, note)
    });
    let woke = (now.wakes > before.wakes).then(|| {
        let last = &container.last_wake;
        let text = format!(
            "Container {name} woke from {} sleep ({})",
            last.depth, last.cause
        );
        (last.at_unix_ms, note("Wake", "Woke", false, text))
    });
    let mut both: Vec<_> = slept.into_iter().chain(woke).collect();
    both.sort_by_key(|(at, _)| *at);
    notes.extend(both.into_iter().map(|(_, note)| note));
    notes
}

fn cut(mut text: String) -> String {
    if text.len() > TEXT {
        text.truncate(text.floor_char_boundary(TEXT - 3));
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use podmotion_proto::shim::v1::{Counters, LastSleep, LastWake, MemoryWait};

    use super::*;

    fn container(counters: Counters) -> Container {
        Container {
            name: "web".into(),
            counters: Some(counters).into(),
            last_error: "checkpoint: Error (criu/sk-inet.c:1): no".into(),
            last_sleep: Some(LastSleep {
                at_unix_ms: 10,
                depth: "light".into(),
                ..Default::default()
            })
            .into(),
            last_wake: Some(LastWake {
                at_unix_ms: 20,
                depth: "light".into(),
                cause: "traffic".into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }

    fn counters(sleeps: u64, wakes: u64) -> Counters {
        Counters {
            sleeps,
            wakes,
            ..Default::default()
        }
    }

    fn said(before: &Container, now: &Container) -> Vec<(&'static str, String)> {
        let notes = notes(Seen::of(before), now);
        notes
            .into_iter()
            .map(|one| (one.reason, one.text))
            .collect()
    }

    #[test]
    fn nothing_new_is_no_event() {
        let same = container(counters(3, 3));
        assert!(said(&same, &same).is_empty());
    }

    #[test]
    fn a_sleep_and_a_wake_that_were_seen_at_once_are_told_in_their_order() {
        let (before, mut now) = (container(counters(1, 1)), container(counters(2, 2)));
        let slept = (
            "FellAsleep",
            "Container web fell into light sleep".to_owned(),
        );
        let woke = (
            "Woke",
            "Container web woke from light sleep (traffic)".to_owned(),
        );
        assert_eq!(said(&before, &now), [slept.clone(), woke.clone()]);
        now.last_sleep.mut_or_insert_default().at_unix_ms = 30;
        assert_eq!(said(&before, &now), [woke, slept]);
    }

    #[test]
    fn a_deeper_sleep_says_why() {
        let (before, mut now) = (container(counters(1, 0)), container(counters(2, 0)));
        let last = now.last_sleep.mut_or_insert_default();
        last.depth = "deep".into();
        last.deepened = "pressure".into();
        let text = "Container web went from light to deep sleep (pressure)".to_owned();
        assert_eq!(said(&before, &now), [("FellDeeper", text)]);
    }

    #[test]
    fn a_failure_has_the_line_of_criu() {
        let before = container(counters(0, 0));
        let now = container(Counters {
            sleeps_failed: 1,
            ..Default::default()
        });
        let notes = notes(Seen::of(&before), &now);
        assert!(notes[0].warning && notes[0].reason == "SleepFailed");
        assert!(notes[0].text.contains("Error (criu/sk-inet.c:1): no"));
    }

    #[test]
    fn what_failed_on_the_way_to_a_wake_is_told_before_it() {
        let before = container(counters(1, 0));
        let mut after = counters(1, 1);
        after.wakes_failed = 1;
        let reasons: Vec<_> = said(&before, &container(after))
            .into_iter()
            .map(|(reason, _)| reason)
            .collect();
        assert_eq!(reasons, ["WakeFailed", "Woke"]);
    }

    #[test]
    fn a_wait_for_memory_is_told_once() {
        let before = container(counters(1, 0));
        let mut waits = before.clone();
        waits.memory_wait = Some(MemoryWait {
            detail: "10 MiB".into(),
            ..Default::default()
        })
        .into();
        let text = "The wake of container web waits for memory: 10 MiB".to_owned();
        assert_eq!(said(&before, &waits), [("WaitsForMemory", text)]);
        assert!(said(&waits, &waits).is_empty());
    }

    #[test]
    fn a_long_text_is_cut_where_a_character_begins() {
        let cut = cut("ä".repeat(1000));
        assert!(cut.len() <= TEXT && cut.ends_with("ä..."), "{}", cut.len());
    }
}
