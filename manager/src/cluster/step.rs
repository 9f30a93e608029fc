//! What is to be done for a pod next: one step at a time, each decided by the pod as it is then.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use podmotion_proto::shim::v1::Container;

use super::requests::{self, OriginalsError, Requests};
use super::status::{self, ASLEEP, Condition, LABEL};

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Status labels.
    pub labels: bool,
    /// Requests of sleeping containers lowered.
    pub lower: bool,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Put requests back.
    Restore(Requests),
    /// Set all labels and the annotation that are ours.
    Metadata {
        /// The labels.
        labels: BTreeMap<String, String>,
        /// What the annotation says; nothing for none.
        originals: Requests,
    },
    /// Lower requests.
    Lower(Requests),
    /// Set the condition, or take it away.
    Condition(Option<Condition>),
}

/// The next step; `None` where all is as it should be, or nothing is known about the pod's containers.
///
/// # Errors
/// When the pod's annotation cannot be read.
pub fn next(
    pod: &Pod,
    containers: &[&Container],
    wishes: Wishes,
) -> Result<Option<Step>, OriginalsError> {
    // It does not sleep, whatever it did before it ended.
    if is_finished(pod) {
        return back(pod);
    }
    if containers.is_empty() {
        return Ok(None);
    }
    let plan = requests::plan(pod, containers, wishes.lower)?;
    if !plan.restore.is_empty() {
        return Ok(Some(Step::Restore(plan.restore)));
    }
    let labels = match wishes.labels {
        true => status::labels(containers),
        false => BTreeMap::new(),
    };
    if labels != labels_of(pod) || plan.originals != requests::originals(pod)? {
        return Ok(Some(Step::Metadata {
            labels,
            originals: plan.originals,
        }));
    }
    if !plan.lower.is_empty() {
        return Ok(Some(Step::Lower(plan.lower)));
    }
    let condition = status::condition(containers);
    Ok((!shows(pod, &condition)).then_some(Step::Condition(Some(condition))))
}

/// What is to be given back next of all that is ours; `None` where there is nothing.
///
/// # Errors
/// When the pod's annotation cannot be read.
pub fn back(pod: &Pod) -> Result<Option<Step>, OriginalsError> {
    let noted = requests::originals(pod)?;
    let lowered = requests::lowered(pod, &noted);
    // Those of a pod that has ended count nowhere, and are not to be changed any more.
    if !lowered.is_empty() && !is_finished(pod) {
        return Ok(Some(Step::Restore(lowered)));
    }
    Ok(if !noted.is_empty() || !labels_of(pod).is_empty() {
        let (labels, originals) = Default::default();
        Some(Step::Metadata { labels, originals })
    } else {
        condition_of(pod).map(|_| Step::Condition(None))
    })
}

/// Whether all its containers have ended, for good.
fn is_finished(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Labels of ours that it has.
pub fn labels_of(pod: &Pod) -> BTreeMap<String, String> {
    let labels = pod.metadata.labels.iter().flatten();
    labels
        .filter(|(key, _)| key.starts_with(LABEL))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Our condition, if the pod has it.
pub fn condition_of(pod: &Pod) -> Option<&PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|one| one.type_ == ASLEEP)
}

/// Whether the pod has this condition. Its time is that of the last change of its status.
fn shows(pod: &Pod, wanted: &Condition) -> bool {
    condition_of(pod).is_some_and(|one| {
        one.status == wanted.status
            && one.reason.as_deref() == Some(wanted.reason)
            && one.message.as_deref() == Some(&wanted.message)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ALL: Wishes = Wishes {
        labels: true,
        lower: true,
    };

    fn pod() -> Value {
        json!({
            "metadata": {"name": "pod"},
            "spec": {"containers": [
                {"name": "web", "resources": {"requests": {"cpu": "500m"}}},
            ]},
            "status": {"qosClass": "Burstable"},
        })
    }

    fn told(state: &str) -> Container {
        Container {
            name: "web".into(),
            state: state.into(),
            depth: if state == "asleep" { "light" } else { "" }.into(),
            ..Default::default()
        }
    }

    /// What the API server makes of a step.
    fn done(pod: &mut Value, step: &Step) {
        let set = |pod: &mut Value, all: &Requests| {
            for (resource, value) in &all["web"] {
                pod["spec"]["containers"][0]["resources"]["requests"][resource] = json!(value);
            }
        };
        match step {
            Step::Restore(all) | Step::Lower(all) => set(pod, all),
            Step::Metadata { labels, originals } => {
                pod["metadata"]["labels"] = json!(labels);
                pod["metadata"]["annotations"] = match originals.is_empty() {
                    true => json!({}),
                    false => json!({
                        requests::ORIGINALS: serde_json::to_string(originals).unwrap()
                    }),
                };
            }
            Step::Condition(condition) => {
                pod["status"]["conditions"] = json!([condition]);
            }
        }
    }

    /// All steps until nothing is left to do, by name.
    fn steps(pod: &mut Value, state: &str, wishes: Wishes) -> Vec<&'static str> {
        let mut names = Vec::new();
        loop {
            let now: Pod = serde_json::from_value(pod.clone()).unwrap();
            let Some(step) = next(&now, &[&told(state)], wishes).unwrap() else {
                return names;
            };
            done(pod, &step);
            names.push(match step {
                Step::Restore(_) => "restore",
                Step::Metadata { .. } => "metadata",
                Step::Lower(_) => "lower",
                Step::Condition(_) => "condition",
            });
            assert!(names.len() < 10, "no end: {names:?}");
        }
    }

    #[test]
    fn originals_are_noted_before_anything_is_lowered_and_go_when_all_is_back() {
        let mut pod = pod();
        let down = steps(&mut pod, "asleep", ALL);
        assert_eq!(down, ["metadata", "lower", "condition"]);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"]["requests"]["cpu"],
            "1m"
        );
        let up = steps(&mut pod, "running", ALL);
        assert_eq!(up, ["restore", "metadata", "condition"]);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"]["requests"]["cpu"],
            "500m"
        );
        assert_eq!(pod["metadata"]["annotations"], json!({}));
        assert_eq!(
            pod["metadata"]["labels"],
            json!({"status.podmotion.komodor.com/web": "Running"})
        );
    }

    #[test]
    fn a_manager_without_its_flags_takes_back_what_another_has_set() {
        let mut pod = pod();
        steps(&mut pod, "asleep", ALL);
        let none = Wishes {
            labels: false,
            lower: false,
        };
        assert_eq!(steps(&mut pod, "asleep", none), ["restore", "metadata"]);
        assert_eq!(pod["metadata"]["labels"], json!({}));
        assert!(steps(&mut pod, "asleep", none).is_empty());
    }

    #[test]
    fn nothing_is_done_for_a_pod_that_nobody_tells_of() {
        let pod: Pod = serde_json::from_value(pod()).unwrap();
        assert_eq!(next(&pod, &[], ALL).unwrap(), None);
    }

    #[test]
    fn requests_go_back_first_and_what_others_have_set_stays() {
        let original = json!({"web": {"cpu": "500m", "memory": "1Gi"}});
        let mut pod = json!({
            "metadata": {
                "name": "pod",
                "labels": {"status.podmotion.komodor.com/web": "ScaledDown"},
                "annotations": {requests::ORIGINALS: original.to_string()},
            },
            "spec": {"containers": [
                {"name": "web", "resources": {"requests": {"cpu": "1m", "memory": "2Gi"}}},
            ]},
            "status": {"conditions": [
                {"type": "podmotion.komodor.com/Asleep", "status": "True"},
            ]},
        });
        let step = |pod: &Value| {
            let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
            back(&pod).unwrap()
        };
        let Some(Step::Restore(back)) = step(&pod) else {
            panic!("nothing is restored");
        };
        assert_eq!(json!(back), json!({"web": {"cpu": "500m"}}));
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("500m");
        let Some(Step::Metadata { labels, originals }) = step(&pod) else {
            panic!("the metadata stays");
        };
        assert!(labels.is_empty() && originals.is_empty());
        pod["metadata"] = json!({"name": "pod"});
        assert_eq!(step(&pod), Some(Step::Condition(None)));
        pod["status"] = json!({});
        assert_eq!(step(&pod), None);
    }

    #[test]
    fn a_pod_that_ends_asleep_shows_nothing_and_its_requests_are_let_be() {
        let mut pod = pod();
        steps(&mut pod, "asleep", ALL);
        pod["status"]["phase"] = json!("Failed");
        let end = |pod: &mut Value, wishes| {
            let now: Pod = serde_json::from_value(pod.clone()).unwrap();
            let step = next(&now, &[], wishes).unwrap()?;
            done(pod, &step);
            Some(step)
        };
        assert!(matches!(end(&mut pod, ALL), Some(Step::Metadata { .. })));
        assert_eq!(end(&mut pod, ALL), Some(Step::Condition(None)));
        assert_eq!(pod["metadata"]["labels"], json!({}));
        pod["status"]["conditions"] = json!([]);
        assert_eq!(end(&mut pod, ALL), None);
    }
}
