//! Containers of one pod beside each other.

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Client, Cluster, refusal};
use serde_json::json;

use super::Body;
use super::counter::{PORT, count, goes_on, start};
use super::manifest::{With, counter, pod, script};
use super::piped::wait_listening;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "kube::members::init_containers_and_sidecars_sleep_and_wake_beside_the_rest",
        init_containers_and_sidecars_sleep_and_wake_beside_the_rest,
    ),
    (
        "kube::members::a_shared_process_namespace_keeps_awake_and_says_so",
        a_shared_process_namespace_keeps_awake_and_says_so,
    ),
];

fn init_containers_and_sidecars_sleep_and_wake_beside_the_rest(cluster: &Cluster) -> Result<()> {
    let shared = json!([{"name": "shared", "mountPath": "/shared"}]);
    let before = script("before", "echo before > /shared/file");
    let sidecar = counter("sidecar", 8081).with("restartPolicy", json!("Always"));
    let mut manifest = pod(vec![
        counter("app", PORT).with("volumeMounts", shared.clone()),
    ]);
    manifest["spec"]["initContainers"] = json!([
        before.with("volumeMounts", shared.clone()),
        sidecar.with("volumeMounts", shared),
    ]);
    manifest["spec"]["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    let pod = start(cluster, &manifest)?;
    wait_listening(cluster, &pod, "sidecar")?;
    ensure!(count(&pod)? == 1);
    let exec = |container: &str, script: &str| {
        let shell = [
            "exec",
            pod.name(),
            "-c",
            container,
            "--",
            "sh",
            "-c",
            script,
        ];
        cluster.kubectl().run(&shell)
    };
    let (app, sidecar) = (pod.container("app")?, pod.container("sidecar")?);

    // What the one that is awake writes, the other one sees.
    app.sleeper.sleep()?;
    exec("sidecar", "echo meanwhile >> /shared/file")?;
    let status = app.sleeper.status()?;
    ensure!(status.state == "asleep", "{status:?}");
    let seen = exec("app", "cat /shared/file")?;
    ensure!(seen == "before\nmeanwhile\n", "{seen:?}");

    for sleeping in [&app, &sidecar] {
        sleeping.sleeper.sleep()?;
    }
    let answer = Client::default().get(pod.address(8081)?, "/")?;
    ensure!(answer.body.contains("\"count\": 1"), "{answer:?}");
    let status = app.sleeper.status()?;
    ensure!(status.state == "asleep", "{status:?}");
    goes_on(&pod)?;
    ensure!(pod.restarts("sidecar")? == 0 && pod.restarts("before")? == 0);
    // The sidecar is the last to go.
    sidecar.sleeper.sleep()?;
    pod.delete()
}

fn a_shared_process_namespace_keeps_awake_and_says_so(cluster: &Cluster) -> Result<()> {
    let mut manifest = pod(vec![counter("app", PORT)]);
    manifest["spec"]["shareProcessNamespace"] = json!(true);
    let pod = start(cluster, &manifest)?;
    let sleeper = pod.container("app")?.sleeper;
    let refused = sleeper.try_sleep();
    let told = refused.err().as_ref().and_then(refusal);
    let told = told.context("it sleeps, or did not answer")?;
    ensure!(told.contains("shares its PID namespace"), "{told}");
    let reason = sleeper.status()?.awake_reason;
    ensure!(reason.detail.contains("PID namespace"), "{reason:?}");
    ensure!(count(&pod)? == 1);
    Ok(())
}
