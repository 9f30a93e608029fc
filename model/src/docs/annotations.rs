//! `docs/annotations.md`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use super::cell;
use crate::annotations::*;
use crate::config::NodeConfig;
use crate::value::{
    ContainerName, DeepSleepAfter, NodeChangeTcp, PortsMap, Setting, TerminateAsleep,
};

const HEAD: &str = "# Annotations of a pod

Set on the pod, they hold for each of its containers. A value that does not parse, and a name that does not exist, fail the
creation of the container with an error that says what is accepted. What has a key in
[the node's configuration](../config.toml.example) holds for the node; the annotation wins. This page is generated from
`model/src/annotations.rs` and `model/src/config.rs`.
";

/// What is known about one annotation.
struct Entry {
    name: &'static str,
    accepted: &'static str,
    default: String,
    key: Option<&'static str>,
    example: &'static str,
    /// What it does not do yet.
    missing: Option<&'static str>,
}

impl Entry {
    fn new<T: Setting>(name: &'static str, default: &str, example: &'static str) -> Self {
        Self {
            name,
            accepted: T::ACCEPTED,
            default: default.to_owned(),
            key: None,
            example,
            missing: None,
        }
    }

    /// One with a key in the node's configuration, and its default.
    fn of<T: Setting>(
        name: &'static str,
        key: &'static str,
        default: &T,
        example: &'static str,
    ) -> Self {
        Self {
            key: Some(key),
            ..Self::new::<T>(name, &format!("`{}`", default.render()), example)
        }
    }

    fn missing(self, what: &'static str) -> Self {
        Self {
            missing: Some(what),
            ..self
        }
    }
}

/// All of them, in the order of [`ALL`].
fn entries() -> Vec<Entry> {
    type Names = BTreeSet<ContainerName>;
    const MIGRATION: &str = "It is read and checked; nothing moves between nodes yet.";
    let sleep = NodeConfig::default().sleep;
    vec![
        Entry::of::<Option<Duration>>(
            SCALEDOWN_DURATION,
            "sleep.scaledown_duration",
            &sleep.scaledown_duration,
            "5m",
        ),
        Entry::new::<Names>(CONTAINER_NAMES, "all containers", "web,admin"),
        Entry::new::<PortsMap>(
            PORTS_MAP,
            "the ports that its sockets listen on, read at each sleep",
            "web=8080,8443;admin=9000",
        ),
        Entry::new::<bool>(DISABLE_CHECKPOINTING, "`false`", "true"),
        Entry::new::<bool>(DISABLE_PROBE_DETECTION, "`false`", "true"),
        Entry::new::<bool>(GRPC_PROBES, "`false`", "true"),
        Entry::of::<Option<f64>>(BUSY_CPU, "sleep.busy_cpu", &sleep.busy_cpu, "0.1"),
        Entry::of::<Option<Duration>>(ANSWER_WAIT, "sleep.answer_wait", &sleep.answer_wait, "10m"),
        Entry::of::<DeepSleepAfter>(
            DEEP_SLEEP_AFTER,
            "sleep.deep_sleep_after",
            &sleep.deep_sleep_after,
            "1h",
        ),
        Entry::of::<TerminateAsleep>(
            TERMINATE_ASLEEP,
            "sleep.terminate_asleep",
            &sleep.terminate_asleep,
            "discard",
        ),
        Entry::of::<bool>(DRY_RUN, "sleep.dry_run", &sleep.dry_run, "true"),
        Entry::new::<Names>(MIGRATE, "none", "web").missing(MIGRATION),
        Entry::new::<ContainerName>(LIVE_MIGRATE, "none", "web").missing(MIGRATION),
        Entry::new::<NodeChangeTcp>(TCP, "`close`", "keep").missing(MIGRATION),
    ]
}

/// The text of the page.
pub fn page() -> String {
    let mut out = HEAD.to_owned();
    for (entry, meaning) in entries().iter().zip(MEANINGS) {
        let meaning: String = meaning
            .iter()
            .map(|line| line.trim())
            .collect::<Vec<_>>()
            .join(" ");
        let key = entry
            .key
            .map_or("none".to_owned(), |key| format!("`{key}`"));
        let mut line = |text: String| {
            // A string takes all there is.
            let _ = writeln!(out, "{text}");
        };
        line(format!("\n## {}\n\n{meaning}\n", entry.name));
        if let Some(missing) = entry.missing {
            line(format!("{missing}\n"));
        }
        line("| | |\n|---|---|".to_owned());
        line(format!("| accepted | {} |", cell(entry.accepted)));
        line(format!("| default | {} |", cell(&entry.default)));
        line(format!("| key of the node | {key} |"));
        line(format!(
            "| example | `{}: \"{}\"` |",
            entry.name, entry.example
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn every_annotation_is_there_with_an_example_that_is_accepted() {
        let entries = entries();
        let names: Vec<_> = entries.iter().map(|entry| entry.name).collect();
        assert_eq!(names, ALL);
        for entry in entries {
            let with = [(entry.name, entry.example)];
            let config = NodeConfig::default();
            let settings = Settings::resolve(with, "web", &config).unwrap();
            let none: [(&str, &str); 0] = [];
            let without = Settings::resolve(none, "web", &config).unwrap();
            let selects = entry.name == CONTAINER_NAMES;
            assert!(
                settings != without || selects,
                "the example of {} changes nothing",
                entry.name
            );
        }
    }
}
