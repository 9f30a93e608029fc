//! Pods of two nodes.

use anyhow::{Result, ensure};
use podmotion_integration_tests::{Cluster, Image, Node, OwnProcess};
use serde_json::json;

use super::Body;
use super::manifest::{With, pod, script};
use super::piped::wait_listening;

pub(super) const TESTS: &[(&str, Body)] = &[(
    "kube::nodes::a_request_from_another_node_wakes",
    a_request_from_another_node_wakes,
)];

/// The second node, which gets only pods that name it: other tests ask where theirs are.
fn second(cluster: &Cluster) -> Result<&Node> {
    if let Some(node) = cluster.second_node() {
        return Ok(node);
    }
    let depth = cluster.node().depth();
    let node = cluster.add_node("", &[Image::Busybox])?;
    cluster.kubectl().run(&["cordon", "node-2"])?;
    node.sleep(depth)?;
    Ok(node)
}

fn a_request_from_another_node_wakes(cluster: &Cluster) -> Result<()> {
    let nodes = [cluster.node(), second(cluster)?];
    let on = |node: &str| {
        let app = script(
            "app",
            "mkdir /www; hostname > /www/index.html; httpd -p 8080 -h /www; echo listening; \
             while :; do sleep 3600; done",
        );
        let mut manifest = pod(vec![app]);
        manifest["spec"] = manifest["spec"].take().with("nodeName", json!(node));
        cluster.create(&manifest)
    };
    let pods = [on("node-1")?, on("node-2")?];
    for (pod, node) in pods.iter().zip(nodes) {
        pod.wait_ready()?;
        wait_listening(cluster, pod, "app")?;
        let sleeper = pod.container("app")?.sleeper;
        let shims = node.shims()?;
        let of_pod = |shim: &OwnProcess| sleeper.is_of(&shim.command);
        ensure!(shims.iter().any(of_pod), "{shims:?}");
    }
    let [first, second] = &pods;
    for (sleeping, awake) in [(first, second), (second, first)] {
        let sleeper = sleeping.container("app")?.sleeper;
        sleeper.sleep()?;
        let url = format!("http://{}/", sleeping.address(8080)?);
        let said =
            cluster
                .kubectl()
                .run(&["exec", awake.name(), "--", "wget", "-q", "-O", "-", &url])?;
        ensure!(said.trim() == sleeping.name(), "{said:?}");
        let status = sleeper.status()?;
        ensure!(
            status.counters.wakes == 1 && status.last_wake.cause == "traffic",
            "{status:?}"
        );
        ensure!(sleeping.restarts("app")? == 0);
    }
    Ok(())
}
