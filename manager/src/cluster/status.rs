//! What a pod shows of its containers' sleep: labels and a condition.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use podmotion_proto::shim::v1::Container;
use serde::Serialize;

/// What status labels begin with; the container's name follows.
pub const LABEL: &str = "status.podmotion.komodor.com/";

/// The condition's type.
pub const ASLEEP: &str = "podmotion.komodor.com/Asleep";

/// A container's state as the value of a label.
fn label(state: &str) -> &'static str {
    match state {
        "created" => "Created",
        "asleep" => "ScaledDown",
        "waking" => "Waking",
        "restore-failed" => "RestoreFailed",
        "stopped" => "Stopped",
        // Falling asleep is neither, and can still be given up.
        _ => "Running",
    }
}

/// The labels of a pod with these containers.
pub fn labels(containers: &[&Container]) -> BTreeMap<String, String> {
    containers
        .iter()
        .map(|one| (format!("{LABEL}{}", one.name), label(&one.state).to_owned()))
        .collect()
}

/// The condition. All of what is in it is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// [`ASLEEP`].
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `True` or `False`.
    pub status: &'static str,
    /// A word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Since when the status is so.
    pub last_transition_time: Time,
}

/// The condition of a pod with these containers, at least one. It is asleep when all of them are that have not
/// ended.
pub fn condition(containers: &[&Container]) -> Condition {
    let live = containers.iter().filter(|one| one.state != "stopped");
    let (asleep, awake): (Vec<&Container>, Vec<&Container>) =
        live.copied().partition(|one| one.state == "asleep");
    let (status, reason) = match (asleep.is_empty(), awake.is_empty()) {
        (false, true) => ("True", "AllContainersAsleep"),
        (false, false) => ("False", "SomeContainersAwake"),
        (true, _) => ("False", "NoContainerAsleep"),
    };
    let mut parts = Vec::new();
    if !asleep.is_empty() {
        let names: Vec<_> = asleep
            .iter()
            .map(|one| format!("{} ({})", one.name, one.depth))
            .collect();
        parts.push(format!("asleep: {}", names.join(", ")));
    }
    if !awake.is_empty() {
        let names: Vec<_> = awake.iter().map(|one| one.name.as_str()).collect();
        parts.push(format!("awake: {}", names.join(", ")));
    }
    let since = asleep.iter().chain(&awake).map(|one| one.since_unix_ms);
    Condition {
        kind: ASLEEP,
        status,
        reason,
        message: parts.join("; "),
        // The API has no fractions of a second here.
        last_transition_time: Time(
            since
                .max()
                .and_then(|millis| Timestamp::from_second(millis.div_euclid(1000)).ok())
                .unwrap_or(Timestamp::UNIX_EPOCH),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, state: &str, depth: &str, since_unix_ms: i64) -> Container {
        Container {
            name: name.into(),
            state: state.into(),
            depth: depth.into(),
            since_unix_ms,
            ..Default::default()
        }
    }

    #[test]
    fn each_state_has_a_label() {
        let all = [
            ("created", "Created"),
            ("running", "Running"),
            ("falling-asleep", "Running"),
            ("asleep", "ScaledDown"),
            ("waking", "Waking"),
            ("restore-failed", "RestoreFailed"),
            ("stopped", "Stopped"),
        ];
        for (state, value) in all {
            let one = container("web", state, "", 0);
            let labels = labels(&[&one]);
            assert_eq!(labels["status.podmotion.komodor.com/web"], value, "{state}");
        }
        assert!(
            crate::metrics::STATES
                .iter()
                .all(|state| all.iter().any(|(one, _)| one == state))
        );
    }

    #[test]
    fn a_pod_is_asleep_when_all_that_live_are() {
        let web = container("web", "asleep", "light", 5_500);
        let db = container("db", "asleep", "deep", 7_500);
        let job = container("job", "stopped", "", 9_000);
        let condition = condition(&[&web, &db, &job]);
        assert_eq!(
            (
                condition.status,
                condition.reason,
                condition.message.as_str()
            ),
            (
                "True",
                "AllContainersAsleep",
                "asleep: web (light), db (deep)"
            )
        );
        assert_eq!(condition.last_transition_time.0.as_second(), 7);
    }

    #[test]
    fn one_that_wakes_is_awake() {
        let web = container("web", "asleep", "light", 0);
        let db = container("db", "waking", "", 0);
        let both = condition(&[&web, &db]);
        assert_eq!(
            (both.status, both.message.as_str()),
            ("False", "asleep: web (light); awake: db")
        );
        let none = condition(&[&db]);
        assert_eq!((none.status, none.reason), ("False", "NoContainerAsleep"));
    }
}
