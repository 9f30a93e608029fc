//! `kubectl podmotion`, as users with different rights have it, and the node server behind it.

mod door;
mod rights;
mod stage;
mod tls;

use std::fs;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Cluster, ensure_woken_by};
use serde_json::{Value, json};

use self::stage::{NAMESPACE, Said, Stage};
use super::Body;
use super::counter::{PORT, count, goes_on, start, status};
use super::manifest::{With, counter, pod, script};

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "kube::ctl::a_viewer_sees_and_an_operator_has_it_sleep_and_wake",
        a_viewer_sees_and_an_operator_has_it_sleep_and_wake,
    ),
    (
        "kube::ctl::a_missing_right_is_called_by_its_name",
        a_missing_right_is_called_by_its_name,
    ),
    (
        "kube::ctl::a_node_that_does_not_answer_spoils_nothing",
        a_node_that_does_not_answer_spoils_nothing,
    ),
    (
        "kube::ctl::only_tokens_for_managers_open_the_node_server",
        door::only_tokens_for_managers_open_the_node_server,
    ),
    (
        "kube::ctl::only_certificates_of_the_clusters_authority_get_a_handshake",
        tls::only_certificates_of_the_clusters_authority_get_a_handshake,
    ),
    (
        "kube::ctl::managers_agree_on_one_authority_and_on_the_next",
        tls::managers_agree_on_one_authority_and_on_the_next,
    ),
    (
        "kube::ctl::whatever_a_client_sends_is_bounded",
        door::whatever_a_client_sends_is_bounded,
    ),
];

fn a_viewer_sees_and_an_operator_has_it_sleep_and_wake(cluster: &Cluster) -> Result<()> {
    let stage = Stage::set(cluster)?;
    let (viewer, operator) = (stage.viewer()?, stage.operator()?);
    let pod = start(cluster, &pod(vec![counter("app", PORT)]))?;
    ensure!(count(&pod)? == 1);

    let said = viewer.run(&["ps"])?.ends_with(0)?;
    let header = "POD CONTAINER STATE SINCE WHY WOKE BY FREED NODE";
    ensure!(said.table()[0] == header, "{}", said.out);
    let line = said.line(pod.name())?;
    ensure!(
        line.starts_with(&format!("{} app running ", pod.name())) && line.ends_with(" - - node-1"),
        "{line}"
    );
    let said = viewer.run(&["why", pod.name()])?.ends_with(0)?;
    ensure!(
        said.out
            .contains(&format!("default/{}/app on node node-1", pod.name()))
            && said.out.contains("It is awake because it ")
            && said
                .out
                .contains("To have it sleep: Wait for `komodor.com/podmotion-scaledown-duration`"),
        "{}",
        said.out
    );

    let said = operator.run(&["sleep", pod.name()])?.ends_with(0)?;
    let words = format!("default/{}/app: asleep (light) after ", pod.name());
    ensure!(said.out.starts_with(&words), "{}", said.out);
    let seen = status(&pod)?;
    ensure!(seen.state == "asleep", "{seen:?}");
    let said = operator.run(&["sleep", pod.name()])?.ends_with(0)?;
    ensure!(said.out.contains("asleep (light) already"), "{}", said.out);

    // The same words as on the node.
    let said = viewer.run(&["ps", "-A", "-o", "json"])?.ends_with(0)?;
    let list: Value = serde_json::from_str(&said.out).context("read ps")?;
    let all = list.as_array().context("no list")?;
    let is_pod = |one: &&Value| one["pod"]["name"] == pod.name();
    let mut record = all.iter().find(is_pod).context("not there")?.clone();
    ensure!(record["node"] == "node-1", "{record:#}");
    let on_node = stage.on_node(&format!("default/{}", pod.name()))?;
    let own = record.as_object_mut().context("no record")?.remove("node");
    ensure!(
        own.is_some() && record == on_node,
        "{record:#}\n{on_node:#}"
    );
    let said = viewer
        .run(&["ps", pod.name(), "-o", "yaml"])?
        .ends_with(0)?;
    ensure!(said.out.contains("state: asleep"), "{}", said.out);
    let said = viewer.run(&["why", &format!("pod/{}", pod.name())])?;
    let said = said.ends_with(0)?;
    ensure!(
        said.out.contains("It is asleep (light)") && said.out.contains("port 8080"),
        "{}",
        said.out
    );

    let said = operator
        .run(&["wake", pod.name(), "-c", "app"])?
        .ends_with(0)?;
    ensure!(said.out.contains("running after "), "{}", said.out);
    let seen = status(&pod)?;
    ensure_woken_by("request", &seen)?;
    goes_on(&pod)
}

fn a_missing_right_is_called_by_its_name(cluster: &Cluster) -> Result<()> {
    let stage = Stage::set(cluster)?;
    let (viewer, operator) = (stage.viewer()?, stage.operator()?);
    let pod = cluster.run(&pod(vec![script("app", "while :; do sleep 3600; done")]))?;
    let is_awake = || -> Result<()> {
        let seen = status(&pod)?;
        ensure!(seen.state == "running", "{seen:?}");
        Ok(())
    };

    let refused = viewer.run(&["sleep", pod.name()])?.ends_with(1)?;
    refused.complains(&[
        "cannot create resource \"serviceaccounts/token\"",
        "podmotion-operator",
    ])?;
    let as_viewer = ["sleep", pod.name(), "--service-account", "podmotion-viewer"];
    viewer
        .run(&as_viewer)?
        .ends_with(1)?
        .complains(&["cannot create resource \"pods/proxy\""])?;
    // The API server lets it through; the manager does not.
    operator.run(&as_viewer)?.ends_with(1)?.complains(&[
        "podmotion-viewer may not sleep containers.podmotion.komodor.com",
        &format!("{:?} in namespace \"default\"", pod.name()),
    ])?;
    is_awake()?;

    let nobody = stage.user("nobody", &[])?;
    nobody
        .run(&["ps"])?
        .ends_with(1)?
        .complains(&["cannot list resource \"pods\"", NAMESPACE])?;

    // Somebody whose rights are those of a service account in his own namespace.
    stage.tenant("shop")?;
    let account = ["--service-account", "shop/podmotion"];
    let tenant = |words: &[&str]| operator.run(&[words, &account].concat());
    tenant(&["ps", "-n", "shop"])?.ends_with(0)?;
    tenant(&["ps", "-A"])?.ends_with(1)?.complains(&[
        "system:serviceaccount:shop:podmotion may not list containers.podmotion.komodor.com \
         in all namespaces",
    ])?;
    tenant(&["sleep", pod.name()])?
        .ends_with(1)?
        .complains(&["may not sleep containers.podmotion.komodor.com"])?;
    is_awake()?;

    // Not a right, but not there.
    operator
        .run(&["wake", "no-such-pod"])?
        .ends_with(4)?
        .complains(&["pods \"no-such-pod\" not found"])?;
    let mut plain = super::manifest::pod(vec![script("app", "while :; do sleep 3600; done")]);
    plain["spec"]["runtimeClassName"] = Value::Null;
    let plain = cluster.run(&plain)?;
    viewer
        .run(&["why", plain.name()])?
        .ends_with(4)?
        .complains(&["is not run by Podmotion: its runtimeClassName is not set"])
}

fn a_node_that_does_not_answer_spoils_nothing(cluster: &Cluster) -> Result<()> {
    let stage = Stage::set(cluster)?;
    let viewer = stage.viewer()?;
    let pod = cluster.run(&pod(vec![script("app", "while :; do sleep 3600; done")]))?;

    // A manager on a node that is not there.
    let container = script("manager", "sleep 3600").with("name", json!("manager"));
    let gone = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "gone", "namespace": NAMESPACE,
            "labels": {"app.kubernetes.io/name": "komodor-podmotion-node"},
        },
        "spec": {"nodeName": "node-9", "containers": [container]},
    });
    cluster.kubectl().apply(&gone)?;
    let said = viewer.run(&["ps"]);
    cluster.kubectl().run(&[
        "delete",
        "pod",
        "gone",
        "--namespace",
        NAMESPACE,
        "--force",
        "--grace-period=0",
    ])?;
    let said = said?.ends_with(3)?;
    said.complains(&["node node-9: its manager does not answer"])?;
    said.line(pod.name())?;

    // And one of the shims is dead.
    let dead = stage.dead_shim()?;
    let said = viewer.run(&["ps"])?;
    let check = viewer.run(&["check", "node-1"]);
    fs::remove_file(&dead).context("remove the dead shim's socket")?;
    let said = said.ends_with(3)?;
    said.complains(&["node node-1: 1 of its shims did not answer"])?;
    said.line(pod.name())?;
    let said = check?.ends_with(1)?;
    ensure!(
        said.out
            .contains("self-test: none since the node has started")
            && said.out.contains(&dead.display().to_string()),
        "{}",
        said.out
    );

    stage.write_self_test(&json!({
        "passed": true, "error": null, "kernel": "6.12.1", "containerd": "2.1.4",
        "podmotion": "0.1.0", "finished": "2026-01-02T03:04:05Z",
        "steps": [{"name": "deep: wake", "ok": true, "millis": 81, "detail": "goes on"}],
    }))?;
    let said = viewer.run(&["check", "node-1"])?.ends_with(0)?;
    ensure!(
        said.out.contains("self-test: passed ") && said.out.contains("deep: wake"),
        "{}",
        said.out
    );
    viewer
        .run(&["check", "node-2"])?
        .ends_with(4)?
        .complains(&["Podmotion is not on node node-2"])
}

impl Said {
    /// Fails unless standard error has all of these words.
    fn complains(&self, words: &[&str]) -> Result<()> {
        for words in words {
            ensure!(self.err.contains(words), "no {words:?} in {:?}", self.err);
        }
        Ok(())
    }
}
