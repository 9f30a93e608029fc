//! The pod's `komodor.com/podmotion-*` annotations and how one of them is read.
//!
//! Invariant: a typing error never turns into silence. A value that does not parse and an
//! annotation below [`PREFIX`] that does not exist are errors.

use std::collections::BTreeMap;
use std::error::Error;

/// What the names of all our annotations begin with.
pub const PREFIX: &str = "komodor.com/podmotion-";

/// The longest value, in bytes: room for the ports of some hundred containers, and an error that shows it can be read.
pub const LONGEST: usize = 8 << 10;

/// As much of a name that does not exist is shown.
const SHOWN: usize = 100;

macro_rules! annotations {
    ($($(#[doc = $doc:literal])* $constant:ident = $name:literal,)+) => {
        $($(#[doc = $doc])* pub const $constant: &str = concat!("komodor.com/podmotion-", $name);)+

        /// All annotations there are.
        pub const ALL: &[&str] = &[$($constant),+];

        /// What each of [`ALL`] means, in the same order.
        pub(crate) const MEANINGS: &[&[&str]] = &[$(&[$($doc),*]),+];
    };
}

annotations! {
    /// Idle time before sleep, a Go duration; `0` is never.
    SCALEDOWN_DURATION = "scaledown-duration",
    /// Containers that may sleep, `a,b`.
    CONTAINER_NAMES = "container-names",
    /// Ports that count and wake, `web=8080,8443;admin=9000`.
    PORTS_MAP = "ports-map",
    /// `true`: stop the idle process instead of checkpointing it. It gets TERM, and KILL after
    /// `stop.timeout`; a connection starts it anew, with nothing in its memory, and is held until it
    /// listens again. Neither hooks nor init containers run once more. Its open connections would
    /// end, so they keep it awake.
    DISABLE_CHECKPOINTING = "disable-checkpointing",
    /// `true`: probes count as traffic.
    DISABLE_PROBE_DETECTION = "disable-probe-detection",
    /// `true`: answer gRPC health probes while asleep.
    GRPC_PROBES = "grpc-probes",
    /// A container that uses more than this many cores is not idle; `0` is no limit.
    BUSY_CPU = "busy-cpu",
    /// How long a request without an answer keeps the container awake; `0` is not at all.
    ANSWER_WAIT = "answer-wait",
    /// Time in light sleep before the checkpoint; `0` or `never`.
    DEEP_SLEEP_AFTER = "deep-sleep-after",
    /// `wake` or `discard`: what TERM does to a sleeping container.
    TERMINATE_ASLEEP = "terminate-asleep",
    /// `true`: never sleeps, reports when it would have.
    DRY_RUN = "dry-run",
    /// Containers whose checkpoint the successor pod takes over, `a,b`.
    MIGRATE = "migrate",
    /// The one container that moves while running.
    LIVE_MIGRATE = "live-migrate",
    /// `keep` or `close`: established connections on a change of node.
    TCP = "tcp",
}

/// Why a pod's annotations cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum AnnotationError {
    /// A value that does not parse.
    #[error("annotation {key}: {value:?} is not valid: expected {accepted}")]
    Invalid {
        /// The annotation's full name.
        key: &'static str,
        /// The value as written.
        value: String,
        /// The accepted form.
        accepted: &'static str,
        /// What exactly is wrong with the value.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A value that is longer than any that could be meant.
    #[error("annotation {key} has {length} bytes: expected at most {LONGEST}")]
    TooLong {
        /// The annotation's full name.
        key: &'static str,
        /// How many bytes its value has.
        length: usize,
    },
    /// No annotation of ours has this name.
    #[error("annotation {key} does not exist: did you mean {}?", closest.join(" or "))]
    Unknown {
        /// The annotation's full name, or how a long one begins.
        key: String,
        /// The names closest to it, closest first; never empty.
        closest: Vec<&'static str>,
    },
}

/// Reads the annotation `key`, `None` when the pod does not have it.
pub fn annotation<T, E>(
    map: &BTreeMap<String, String>,
    key: &'static str,
    accepted: &'static str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, AnnotationError>
where
    E: Error + Send + Sync + 'static,
{
    map.get(key)
        .map(|value| {
            let length = value.len();
            if length > LONGEST {
                return Err(AnnotationError::TooLong { key, length });
            }
            parse(value).map_err(|source| AnnotationError::Invalid {
                key,
                value: value.clone(),
                accepted,
                source: Box::new(source),
            })
        })
        .transpose()
}

/// Refuses annotations below [`PREFIX`] that do not exist. Others' annotations are theirs.
pub fn reject_unknown<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<(), AnnotationError> {
    for key in keys {
        if key.starts_with(PREFIX) && !ALL.contains(&key) {
            let shown: String = key.chars().take(SHOWN).collect();
            return Err(AnnotationError::Unknown {
                closest: closest(&shown),
                key: shown,
            });
        }
    }
    Ok(())
}

/// All names at the smallest edit distance from `key`.
fn closest(key: &str) -> Vec<&'static str> {
    let with_distance: Vec<_> = ALL
        .iter()
        .map(|name| (edit_distance(key, name), *name))
        .collect();
    let least = with_distance.iter().map(|(distance, _)| *distance).min();
    with_distance
        .into_iter()
        .filter(|(distance, _)| Some(*distance) == least)
        .map(|(_, name)| name)
        .collect()
}

/// Levenshtein distance in characters.
fn edit_distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Setting;

    fn map(key: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn absent_is_none() {
        let found = annotation(&BTreeMap::new(), DRY_RUN, bool::ACCEPTED, bool::parse);
        assert!(found.unwrap().is_none());
    }

    #[test]
    fn only_true_and_false_are_booleans() {
        let read =
            |value: &str| annotation(&map(DRY_RUN, value), DRY_RUN, bool::ACCEPTED, bool::parse);
        assert_eq!(read("true").unwrap(), Some(true));
        assert_eq!(read("false").unwrap(), Some(false));
        for value in ["True", "yes", "1", "", " true", "0"] {
            assert_eq!(
                read(value).unwrap_err().to_string(),
                format!(
                    "annotation komodor.com/podmotion-dry-run: {value:?} is not valid: \
                     expected true or false"
                )
            );
        }
    }

    #[test]
    fn an_error_keeps_its_cause() {
        let error = annotation(
            &map(SCALEDOWN_DURATION, "10 s"),
            SCALEDOWN_DURATION,
            "a Go duration",
            crate::duration::parse,
        )
        .unwrap_err();
        assert_eq!(
            error.source().unwrap().to_string(),
            "unknown unit \" s\", expected one of h, m, s, ms, us, ns"
        );
    }

    #[test]
    fn a_misspelt_annotation_is_an_error_with_the_right_one() {
        let error = reject_unknown(["io.kubernetes.cri.x", "komodor.com/podmotion-port-map"]);
        assert_eq!(
            error.unwrap_err().to_string(),
            "annotation komodor.com/podmotion-port-map does not exist: \
             did you mean komodor.com/podmotion-ports-map?"
        );
        let error = reject_unknown(["komodor.com/podmotion-scaledown-durations"]);
        assert!(error.unwrap_err().to_string().contains(SCALEDOWN_DURATION));
    }

    #[test]
    fn a_huge_annotation_makes_a_short_error() {
        let huge = "a".repeat(1 << 20);
        let error = annotation(&map(DRY_RUN, &huge), DRY_RUN, bool::ACCEPTED, bool::parse);
        assert_eq!(
            error.unwrap_err().to_string(),
            "annotation komodor.com/podmotion-dry-run has 1048576 bytes: expected at most 8192"
        );
        let error = reject_unknown([&*format!("{PREFIX}{huge}")]).unwrap_err();
        assert!(error.to_string().len() < 2000, "{error}");
    }

    #[test]
    fn other_peoples_annotations_are_theirs() {
        reject_unknown(["komodor.com/other", "podmotion-migrate", ""]).unwrap();
        reject_unknown(ALL.iter().copied()).unwrap();
    }

    #[test]
    fn edit_distances() {
        for (from, to, distance) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("flaw", "lawn", 2),
        ] {
            assert_eq!(edit_distance(from, to), distance, "{from} {to}");
        }
    }
}
