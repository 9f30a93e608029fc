//! Kubelets that start again, and kubelets that are short of something.

use anyhow::{Result, ensure};
use podmotion_integration_tests::Cluster;
use serde_json::json;

use super::Body;
use super::counter::{PORT, count, goes_on, start, status};
use super::manifest::{With, counter, pod, script};

pub(super) const TESTS: &[(&str, Body)] = &[(
    "kube::kubelet::sleeping_pods_outlive_a_restart_and_end_under_pressure",
    sleeping_pods_outlive_a_restart_and_end_under_pressure,
)];

fn sleeping_pods_outlive_a_restart_and_end_under_pressure(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    // With a request a kubelet under pressure takes it over from the one before, and then evicts it.
    let app = counter("app", PORT).with("resources", json!({"requests": {"memory": "1Mi"}}));
    let sleeping = start(cluster, &pod(vec![app]))?;
    ensure!(count(&sleeping)? == 1);
    sleeping.container("app")?.sleeper.sleep()?;
    cluster.restart_kubelet()?;
    // One that it can start only after it has looked at what runs.
    cluster.run(&pod(vec![script("app", "while :; do sleep 3600; done")]))?;
    let seen = status(&sleeping)?;
    ensure!(
        seen.state == "asleep" && seen.counters.wakes == 0,
        "{seen:?}"
    );
    goes_on(&sleeping)?;
    sleeping.container("app")?.sleeper.sleep()?;

    // More than any machine has. A hard bound would have to be less than what this one has.
    let short = cluster.set_kubelet(&json!({
        "evictionSoft": {"memory.available": "1000Ti"},
        "evictionSoftGracePeriod": {"memory.available": "1s"},
        "evictionMaxPodGracePeriod": 30,
    }))?;
    let name = format!("pod/{}", sleeping.name());
    // The kubelet forgets its reason where the program ends well: this condition is left.
    kubectl.wait(&name, "condition=DisruptionTarget")?;
    // It has heard of it: unless told it ends with 137.
    let exit = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}=0";
    kubectl.wait(&name, exit)?;
    drop(short);
    kubectl.wait("node/node-1", "condition=MemoryPressure=False")
}
