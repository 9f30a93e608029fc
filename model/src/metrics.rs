//! The metrics that a node's manager serves: names, kinds and labels, in one table.
//!
//! Dashboards, alerts and documentation name metrics too; tests hold them against this table.

/// What a metric is, in the words of OpenMetrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by interval.
    Histogram,
    /// Says something in its labels; its value is 1.
    Info,
}

impl Kind {
    /// OpenMetrics' name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// A label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// The values that it can have; empty where they come from outside.
    pub values: &'static [&'static str],
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// The full name, with its unit, and `_total` of a counter, `_info` of an information.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The unit that its name ends with; none for plain numbers.
    pub unit: Option<&'static str>,
    /// Its labels, in the order in which they are written.
    pub labels: &'static [Label],
    /// One line for people.
    pub help: &'static str,
}

impl Metric {
    /// Names of the series that it consists of, as a query names them.
    pub fn series(&self) -> Vec<String> {
        match self.kind {
            Kind::Counter | Kind::Gauge | Kind::Info => vec![self.name.to_owned()],
            Kind::Histogram => ["bucket", "sum", "count"]
                .map(|part| format!("{}_{part}", self.name))
                .into(),
        }
    }

    /// What OpenMetrics calls it in `# TYPE`.
    pub fn family(&self) -> &'static str {
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        self.name.strip_suffix(suffix).unwrap_or(self.name)
    }

    /// The label of that name.
    pub fn label(&self, name: &str) -> Option<&'static Label> {
        self.labels.iter().find(|label| label.name == name)
    }
}

const fn free(name: &'static str) -> Label {
    Label { name, values: &[] }
}

const NAMESPACE: Label = free("namespace");
const POD: Label = free("pod");
const CONTAINER: Label = free("container");

const DEPTH: Label = Label {
    name: "depth",
    values: &["light", "deep", "cold"],
};

const STATE: Label = Label {
    name: "state",
    values: &[
        "created",
        "running",
        "falling-asleep",
        "asleep",
        "waking",
        "restore-failed",
        "stopped",
    ],
};

const CHECKPOINT_RESULT: Label = Label {
    name: "result",
    values: &["success", "aborted", "failed"],
};

const RESTORE_RESULT: Label = Label {
    name: "result",
    values: &["success", "failed"],
};

const KIND: Label = Label {
    name: "kind",
    values: &["light", "deep", "deep-lazy", "cold", "cold-start"],
};

/// Of one container: these labels, and what is its own.
macro_rules! of_container {
    ($($label:expr),*) => {
        &[NAMESPACE, POD, CONTAINER, $($label),*]
    };
}

/// All of them: first those of a container, then those of the node.
pub const ALL: &[Metric] = &[
    Metric {
        name: "podmotion_checkpoints_total",
        kind: Kind::Counter,
        unit: None,
        labels: of_container!(CHECKPOINT_RESULT, DEPTH),
        help: "Attempts to put the container to sleep",
    },
    Metric {
        name: "podmotion_restores_total",
        kind: Kind::Counter,
        unit: None,
        labels: of_container!(RESTORE_RESULT, KIND),
        help: "Attempts to wake the container",
    },
    Metric {
        name: "podmotion_checkpoint_duration_seconds",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: of_container!(DEPTH),
        help: "From the decision to sleep until the memory was free",
    },
    Metric {
        name: "podmotion_restore_duration_seconds",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: of_container!(DEPTH),
        help: "From the request to wake until the processes ran",
    },
    Metric {
        name: "podmotion_first_byte_hold_seconds",
        kind: Kind::Histogram,
        unit: Some("seconds"),
        labels: of_container!(),
        help: "How long the first packet of a wake was held",
    },
    Metric {
        name: "podmotion_container_state",
        kind: Kind::Gauge,
        unit: None,
        labels: of_container!(STATE),
        help: "1 for the state that the container is in, 0 for the others",
    },
    Metric {
        name: "podmotion_memory_freed_bytes",
        kind: Kind::Gauge,
        unit: Some("bytes"),
        labels: of_container!(),
        help: "Memory that is free at this moment because the container sleeps",
    },
    Metric {
        name: "podmotion_image_bytes",
        kind: Kind::Gauge,
        unit: Some("bytes"),
        labels: of_container!(),
        help: "Disk that the container's images take at this moment",
    },
    Metric {
        name: "podmotion_awake_reason",
        kind: Kind::Gauge,
        unit: None,
        labels: of_container!(free("reason")),
        help: "1 for the reason for which the container is awake",
    },
    Metric {
        name: "podmotion_build_info",
        kind: Kind::Info,
        unit: None,
        labels: &[free("version")],
        help: "1, with the manager's version",
    },
    Metric {
        name: "podmotion_shims",
        kind: Kind::Gauge,
        unit: None,
        labels: &[],
        help: "Shims on the node, one for each pod",
    },
    Metric {
        name: "podmotion_shims_unreachable",
        kind: Kind::Gauge,
        unit: None,
        labels: &[],
        help: "Shims that have a socket and do not answer",
    },
    Metric {
        name: "podmotion_self_test_passed",
        kind: Kind::Gauge,
        unit: None,
        labels: &[],
        help: "1 if the node's last self-test has passed, 0 if not",
    },
    Metric {
        name: "podmotion_self_test_timestamp_seconds",
        kind: Kind::Gauge,
        unit: Some("seconds"),
        labels: &[],
        help: "When the node's last self-test ended, in seconds since 1970",
    },
    Metric {
        name: "podmotion_wakes_waiting_for_memory",
        kind: Kind::Gauge,
        unit: None,
        labels: &[],
        help: "Wakes that wait for the node to have memory",
    },
    Metric {
        name: "podmotion_kubernetes_errors_total",
        kind: Kind::Counter,
        unit: None,
        labels: &[free("operation")],
        help: "Requests to the API server that failed",
    },
];

/// The metric that a series of a query, such as `podmotion_restore_duration_seconds_bucket`, is of.
pub fn find(series: &str) -> Option<&'static Metric> {
    ALL.iter()
        .find(|metric| metric.series().iter().any(|name| name == series))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_are() {
        for metric in ALL {
            let name = metric.name;
            assert!(name.starts_with("podmotion_"), "{name}");
            assert_eq!(
                name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{name}"
            );
            assert_eq!(name.ends_with("_info"), metric.kind == Kind::Info, "{name}");
            if let Some(unit) = metric.unit {
                assert!(name.ends_with(unit), "{name}");
            }
            assert!(!metric.help.ends_with('.'), "{name}");
        }
    }

    #[test]
    fn each_series_belongs_to_one_metric() {
        let mut all: Vec<_> = ALL.iter().flat_map(Metric::series).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn a_histogram_is_found_by_its_parts() {
        let found = find("podmotion_restore_duration_seconds_bucket").expect("known");
        assert_eq!(found.name, "podmotion_restore_duration_seconds");
        assert!(find("podmotion_restore_duration_seconds").is_none());
        assert_eq!(found.label("depth"), Some(&DEPTH));
        assert_eq!(found.label("result"), None);
    }

    #[test]
    fn families_have_no_suffix() {
        let family = |series| find(series).map(Metric::family);
        assert_eq!(
            family("podmotion_restores_total"),
            Some("podmotion_restores")
        );
        assert_eq!(family("podmotion_build_info"), Some("podmotion_build"));
        assert_eq!(
            family("podmotion_image_bytes"),
            Some("podmotion_image_bytes")
        );
    }

    #[test]
    fn states_and_depths_are_those_of_the_lifecycle() {
        use crate::lifecycle::{Attempt, Depth, Fill, State, WakeCause};
        let states = [
            State::Created,
            State::Running {
                fill: Fill::Complete,
            },
            State::FallingAsleep {
                into: Depth::Deep,
                wake: None,
            },
            State::Asleep {
                depth: Depth::Deep,
                lazy: false,
            },
            State::Waking {
                from: Depth::Deep,
                cause: WakeCause::Traffic,
                attempt: Attempt::First,
                lazy: false,
            },
            State::RestoreFailed,
            State::Stopped,
        ];
        assert_eq!(STATE.values, states.map(State::as_str));
        let depths = [Depth::Light, Depth::Deep, Depth::Cold];
        assert_eq!(DEPTH.values, depths.map(Depth::as_str));
    }
}
