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
    // Gone before the pressure: a kubelet that evicts two waits for each of them to be cleaned up.
    cluster
        .run(&pod(vec![script(
            "app",
            "trap exit TERM; sleep 3600 & wait",
        )]))?
        .delete()?;
    let seen = status(&sleeping)?;
    ensure!(
        seen.state == "asleep" && seen.counters.wakes == 0,
        "{seen:?}"
    );
    goes_on(&sleeping)?;
    let container = sleeping.container("app")?;
    container.sleeper.sleep()?;

    // More than any machine has. A hard bound would have to be less than what this one has.
    let short = cluster.set_kubelet(&json!({
        "evictionSoft": {"memory.available": "1000Ti"},
        "evictionSoftGracePeriod": {"memory.available": "1s"},
        "evictionMaxPodGracePeriod": 30,
    }))?;
    let name = format!("pod/{}", sleeping.name());
    // The kubelet forgets its reason where the program ends well: this condition is left.
    kubectl.wait(&name, "condition=DisruptionTarget")?;
    // It has heard of it: unless told it ends with 137. The kubelet removes what it has evicted at once,
    // now and then before it has read how it ended; containerd tells everybody.
    let end = cluster.node().events().wait_for_exit(&container.id)?;
    ensure!(end.exit_status == 0, "{end:?}");
    drop(short);
    kubectl.wait("node/node-1", "condition=MemoryPressure=False")
}
