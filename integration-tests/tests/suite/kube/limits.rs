//! Limits and figures of sleeping containers.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{
    Cluster, KubePod, PATIENCE, cpu_quota, memory_limit, set_memory_limit,
};
use serde_json::{Value, json};

use super::Body;
use super::counter::{PORT, count, goes_on, start, status};
use super::manifest::{With, counter, pod};

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "kube::limits::limits_changed_asleep_hold_after_the_wake",
        limits_changed_asleep_hold_after_the_wake,
    ),
    (
        "kube::limits::figures_of_a_sleeping_pod_are_small_and_wake_nobody",
        figures_of_a_sleeping_pod_are_small_and_wake_nobody,
    ),
    (
        "kube::limits::a_wake_past_the_limit_is_seen_as_oom",
        a_wake_past_the_limit_is_seen_as_oom,
    ),
];

const MIB: u64 = 1 << 20;

/// A pod with a counter that holds that many megabytes and reads all of them at each request.
fn holding(cluster: &Cluster, megabytes: u64, limits: Value) -> Result<KubePod<'_>> {
    let app = counter("app", PORT)
        .with(
            "env",
            json!([
                {"name": "PORT", "value": PORT.to_string()},
                {"name": "MEM_MB", "value": megabytes.to_string()},
                {"name": "TOUCH_MB", "value": megabytes.to_string()},
            ]),
        )
        .with(
            "resources",
            json!({
                // Less than the limits, so that these can change.
                "requests": {"memory": "10Mi", "cpu": "10m"},
                "limits": limits,
            }),
        );
    start(cluster, &pod(vec![app]))
}

fn limits_changed_asleep_hold_after_the_wake(cluster: &Cluster) -> Result<()> {
    let pod = holding(cluster, 10, json!({"memory": "200Mi", "cpu": "500m"}))?;
    let container = pod.container("app")?;
    let group = container.cgroup()?;
    let limits = || anyhow::Ok((memory_limit(&group)? / MIB, cpu_quota(&group)? / 1000));
    ensure!(limits()? == (200, 50), "{:?}", limits()?);
    ensure!(count(&pod)? == 1);
    container.sleeper.sleep()?;
    let patch = json!({"spec": {"containers": [{
        "name": "app",
        "resources": {"limits": {"memory": "300Mi", "cpu": "700m"}},
    }]}});
    let patch = format!("--patch={patch}");
    cluster
        .kubectl()
        .run(&["patch", "pod", pod.name(), "--subresource=resize", &patch])?;
    // The last thing that the kubelet says, when all is done.
    cluster.kubectl().wait(
        &format!("pod/{}", pod.name()),
        "jsonpath={.status.containerStatuses[0].resources.limits.memory}=300Mi",
    )?;
    ensure!(limits()? == (300, 70), "{:?}", limits()?);
    goes_on(&pod)?;
    container.sleeper.sleep()?;
    ensure!(count(&pod)? == 3);
    ensure!(limits()? == (300, 70), "{:?}", limits()?);
    ensure!(pod.container("app")?.id == container.id);
    Ok(())
}

fn figures_of_a_sleeping_pod_are_small_and_wake_nobody(cluster: &Cluster) -> Result<()> {
    let pod = holding(cluster, 60, json!({"memory": "200Mi"}))?;
    ensure!(count(&pod)? == 1);
    for figure in [summary, resource] {
        wait_working_set(cluster, &pod, figure, |bytes| bytes > 60 * MIB)?;
    }
    pod.container("app")?.sleeper.sleep()?;
    for figure in [summary, resource] {
        wait_working_set(cluster, &pod, figure, |bytes| bytes < 16 * MIB)?;
    }
    let status = status(&pod)?;
    ensure!(
        status.state == "asleep" && status.counters.wakes == 0,
        "{status:?}"
    );
    goes_on(&pod)
}

/// Asks until the kubelet says so: it has collected its figures some time before.
fn wait_working_set(
    cluster: &Cluster,
    pod: &KubePod<'_>,
    figure: fn(&Cluster, &str) -> Result<Option<u64>>,
    good: impl Fn(u64) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let bytes = figure(cluster, pod.name())?;
        if bytes.is_some_and(&good) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the working set is {bytes:?}");
        }
    }
}

fn ask_kubelet(cluster: &Cluster, path: &str) -> Result<String> {
    let path = format!("/api/v1/nodes/node-1/proxy/{path}");
    cluster
        .kubectl()
        .run(&["get", "--request-timeout=30s", "--raw", &path])
}

/// What the kubelet's summary says of the pod's one container.
fn summary(cluster: &Cluster, pod: &str) -> Result<Option<u64>> {
    let answer: Value = serde_json::from_str(&ask_kubelet(cluster, "stats/summary")?)
        .context("read the summary")?;
    let pods = answer["pods"].as_array().into_iter().flatten();
    let found = pods
        .filter(|one| one["podRef"]["name"] == pod)
        .find_map(|one| one["containers"][0]["memory"]["workingSetBytes"].as_u64());
    Ok(found)
}

/// What `kubectl top` goes by.
fn resource(cluster: &Cluster, pod: &str) -> Result<Option<u64>> {
    let answer = ask_kubelet(cluster, "metrics/resource")?;
    let name = format!("pod=\"{pod}\"");
    let line = answer.lines().find(|line| {
        line.starts_with("container_memory_working_set_bytes{") && line.contains(&name)
    });
    line.map(|line| {
        let figure = line.split(' ').nth(1).context("no figure")?;
        let bytes: f64 = figure.parse().context("read a figure")?;
        Ok(bytes as u64)
    })
    .transpose()
}

fn a_wake_past_the_limit_is_seen_as_oom(cluster: &Cluster) -> Result<()> {
    let pod = holding(cluster, 80, json!({"memory": "200Mi"}))?;
    ensure!(count(&pod)? == 1);
    let container = pod.container("app")?;
    container.sleeper.sleep()?;
    set_memory_limit(&container.cgroup()?, Some(30 * MIB))?;
    // Nobody can answer it.
    let answer = count(&pod);
    ensure!(answer.is_err(), "{answer:?}");
    let name = format!("pod/{}", pod.name());
    cluster.kubectl().wait(
        &name,
        "jsonpath={.status.containerStatuses[0].lastState.terminated.reason}=OOMKilled",
    )?;
    pod.wait_ready()?;
    ensure!(pod.restarts("app")? == 1);
    ensure!(pod.container("app")?.id != container.id);
    ensure!(memory_limit(&pod.container("app")?.cgroup()?)? == 200 * MIB);
    Ok(())
}
