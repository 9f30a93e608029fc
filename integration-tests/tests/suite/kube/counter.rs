//! A pod with one counter, called `app`, and what is true of it.

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Client, Cluster, KubePod, Response, Status};
use serde_json::Value;

use super::manifest::{counter, pod};
use super::piped::wait_listening;

pub(super) const PORT: u16 = 8080;

/// Makes a pod and waits until its counter can be asked.
pub(super) fn start<'a>(cluster: &'a Cluster, manifest: &Value) -> Result<KubePod<'a>> {
    let pod = cluster.run(manifest)?;
    wait_listening(cluster, &pod, "app")?;
    Ok(pod)
}

/// A pod with one counter, asked once and asleep.
pub(super) fn sleeper(cluster: &Cluster) -> Result<KubePod<'_>> {
    let pod = start(cluster, &pod(vec![counter("app", PORT)]))?;
    ensure!(count(&pod)? == 1);
    pod.container("app")?.sleeper.sleep()?;
    Ok(pod)
}

pub(super) fn get(pod: &KubePod<'_>, port: u16) -> Result<Response> {
    Client::default().get(pod.address(port)?, "/")
}

/// The counter's next number.
pub(super) fn count(pod: &KubePod<'_>) -> Result<u64> {
    let answer = get(pod, PORT)?;
    let body: Value = serde_json::from_str(&answer.body).context("read the answer")?;
    body["count"].as_u64().context("no count")
}

pub(super) fn status(pod: &KubePod<'_>) -> Result<Status> {
    pod.container("app")?.sleeper.status()
}

/// That it has been awake once, for `cause`, and goes on where it was.
pub(super) fn woken_for(pod: &KubePod<'_>, cause: &str) -> Result<()> {
    let status = status(pod)?;
    ensure!(
        status.counters.wakes == 1 && status.last_wake.cause == cause,
        "{status:?}"
    );
    goes_on(pod)
}

/// That it is the one that was started first.
pub(super) fn goes_on(pod: &KubePod<'_>) -> Result<()> {
    ensure!(count(pod)? == 2);
    ensure!(pod.restarts("app")? == 0);
    Ok(())
}
