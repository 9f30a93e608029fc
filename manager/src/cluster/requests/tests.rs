use serde_json::{Value, json};

use super::*;

fn pod(class: &str, cpu: &str, memory: &str, originals: Option<Value>) -> Pod {
    let annotations = originals.map(|all| json!({ORIGINALS: all.to_string()}));
    serde_json::from_value(json!({
        "metadata": {"name": "pod", "annotations": annotations},
        "spec": {"containers": [
            {"name": "web", "resources": {
                "requests": {"cpu": cpu, "memory": memory, "ephemeral-storage": "1Gi"},
                "limits": {"cpu": "2", "memory": "1Gi"},
            }},
            {"name": "side", "resources": {"requests": {"cpu": "50m"}}},
        ]},
        "status": {"qosClass": class},
    }))
    .unwrap()
}

fn told(name: &str, state: &str) -> Container {
    Container {
        name: name.into(),
        state: state.into(),
        ..Default::default()
    }
}

fn requests(all: Value) -> Requests {
    serde_json::from_value(all).unwrap()
}

/// The plan for `web` in a state, beside one that runs.
fn planned(pod: &Pod, state: &str, lower: bool) -> Plan {
    plan(pod, &[&told("web", state), &told("side", "running")], lower).unwrap()
}

#[test]
fn a_sleeping_containers_requests_are_noted_and_lowered() {
    let plan = planned(&pod("Burstable", "500m", "256Mi", None), "asleep", true);
    assert!(plan.restore.is_empty());
    let originals = json!({"web": {"cpu": "500m", "memory": "256Mi"}});
    assert_eq!(plan.originals, requests(originals));
    let lower = json!({"web": {"cpu": "1m", "memory": "16Mi"}});
    assert_eq!(plan.lower, requests(lower));
}

#[test]
fn lowered_ones_stay_as_they_are() {
    let originals = json!({"web": {"cpu": "500m", "memory": "256Mi"}});
    let pod = pod("Burstable", "1m", "16Mi", Some(originals.clone()));
    let plan = planned(&pod, "asleep", true);
    assert_eq!(plan.originals, requests(originals));
    assert!(plan.restore.is_empty() && plan.lower.is_empty());
}

#[test]
fn all_come_back_with_the_wake_or_without_the_flag() {
    let originals = json!({"web": {"cpu": "500m", "memory": "256Mi"}});
    let pod = pod("Burstable", "1m", "16Mi", Some(originals.clone()));
    for (state, lower) in [("waking", true), ("running", true), ("asleep", false)] {
        let plan = planned(&pod, state, lower);
        assert_eq!(plan.restore, requests(originals.clone()), "{state}");
        assert_eq!(
            plan.originals,
            requests(originals.clone()),
            "not before they are back"
        );
        assert!(plan.lower.is_empty());
    }
}

#[test]
fn the_note_goes_when_all_are_back() {
    let originals = json!({"web": {"cpu": "500m", "memory": "256Mi"}});
    let pod = pod("Burstable", "500m", "256Mi", Some(originals));
    assert_eq!(planned(&pod, "running", true), Plan::default());
}

#[test]
fn a_note_without_a_change_is_followed_by_the_change() {
    let originals = json!({"web": {"cpu": "500m", "memory": "256Mi"}});
    let pod = pod("Burstable", "500m", "256Mi", Some(originals.clone()));
    let plan = planned(&pod, "asleep", true);
    assert_eq!(plan.originals, requests(originals));
    assert_eq!(plan.lower.len(), 1);
}

#[test]
fn what_somebody_else_has_set_is_kept() {
    let originals = json!({"web": {"cpu": "500m", "memory": "256Mi"}});
    let pod = pod("Burstable", "800m", "16Mi", Some(originals));
    let awake = planned(&pod, "running", true);
    assert_eq!(awake.restore, requests(json!({"web": {"memory": "256Mi"}})));
    let asleep = planned(&pod, "asleep", true);
    let originals = json!({"web": {"cpu": "800m", "memory": "256Mi"}});
    assert_eq!(asleep.originals, requests(originals));
    assert_eq!(asleep.lower, requests(json!({"web": {"cpu": "1m"}})));
}

#[test]
fn a_container_that_nobody_tells_of_stays_as_it_is() {
    let originals = json!({"web": {"cpu": "500m", "memory": "256Mi"}});
    let pod = pod("Burstable", "1m", "16Mi", Some(originals.clone()));
    let plan = plan(&pod, &[&told("side", "running")], true).unwrap();
    assert_eq!(plan.originals, requests(originals));
    assert!(plan.restore.is_empty() && plan.lower.is_empty());
}

#[test]
fn little_is_not_lowered() {
    let plan = planned(&pod("Burstable", "1m", "10Mi", None), "asleep", true);
    assert_eq!(plan, Plan::default());
}

#[test]
fn a_class_that_would_change_is_left_alone_and_why_is_said() {
    let guaranteed = pod("Guaranteed", "2", "1Gi", None);
    assert_eq!(planned(&guaranteed, "asleep", true), Plan::default());
    assert!(left_alone(&guaranteed).unwrap().contains("Guaranteed"));
    let best = pod("BestEffort", "1", "1Gi", None);
    assert!(left_alone(&best).unwrap().contains("no requests"));
    assert_eq!(left_alone(&pod("Burstable", "1", "1Gi", None)), None);
}

#[test]
fn a_resource_whose_change_restarts_is_left_alone() {
    let mut pod = pod("Burstable", "500m", "256Mi", None);
    let spec = pod.spec.as_mut().unwrap();
    let policy = |resource: &str| ContainerResizePolicy {
        resource_name: resource.into(),
        restart_policy: "RestartContainer".into(),
    };
    spec.containers[0].resize_policy = Some(vec![policy("memory")]);
    let plan = planned(&pod, "asleep", true);
    assert_eq!(plan.lower, requests(json!({"web": {"cpu": "1m"}})));
    for one in &mut pod.spec.as_mut().unwrap().containers {
        one.resize_policy = Some(vec![policy("memory"), policy("cpu")]);
    }
    assert!(left_alone(&pod).unwrap().contains("restart"));
}

#[test]
fn a_broken_note_is_an_error_that_names_it() {
    let mut pod = pod("Burstable", "1m", "16Mi", None);
    pod.metadata.annotations = Some([(ORIGINALS.to_owned(), "web".to_owned())].into());
    let error = plan(&pod, &[&told("web", "running")], true).unwrap_err();
    let words = error.to_string();
    assert!(
        words.contains(ORIGINALS) && words.contains("\"web\""),
        "{words}"
    );
}

#[test]
fn quantities_are_compared_by_value() {
    for (more, less) in [
        ("2", "1500m"),
        ("0.5", "1m"),
        ("17Mi", "16Mi"),
        ("17000000", "16Mi"),
        ("1e9", "16Mi"),
        ("1G", "16Mi"),
        ("1Gi", "1G"),
    ] {
        assert!(exceeds(more, less) && !exceeds(less, more), "{more} {less}");
    }
    assert!(!exceeds("much", "1m"));
}
