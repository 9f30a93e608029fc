//! Pods of a cluster, asleep with the kubelet asking after them every second: what each of them keeps and
//! what the answers cost.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{
    Cluster, Depth, Image, Node, OwnProcess, Sleeper, Versions, cgroup_of, container_id,
    own_processes,
};
use serde_json::{Value, json};

use super::crowd::{Kept, wake_all};
use super::figure::{Figure, Target};
use super::idle::ByItself;
use super::memory::PORT;
use crate::numbers::{Samples, ms};
use crate::report::Progress;

const NAME: &str = "pods";
/// The pod that is alone.
const ONE: &str = "one";
/// What it holds, in MiB.
const ONE_MB: u32 = 50;
/// Most milliseconds for a light sleep of it that is not the first.
const SECOND_SLEEP_MS: f64 = 10.0;
/// For how long is watched what the processor does.
const WATCHED: Duration = Duration::from_secs(20);
/// How often they are woken.
const ROUNDS: u64 = 3;

/// Measures with that many pods.
pub fn measure(versions: Versions, count: usize, progress: &Progress) -> Result<Vec<Figure>> {
    progress.begin(&format!("{count} pods: Kubernetes"));
    let cluster = Cluster::start(Node::start(versions)?)?;
    cluster.sleep(Depth::Light)?;
    progress.detail(&format!("{count} pods: start"));
    cluster.kubectl().apply(&deployment(count))?;
    let name = format!("deployment/{NAME}");
    cluster
        .kubectl()
        .run(&["rollout", "status", &name, "--timeout=900s"])?;
    let pods = Pod::all(&cluster, NAME)?;
    ensure!(pods.len() == count, "{} pods", pods.len());
    let asleep = |what: &str| -> Result<()> {
        for (number, pod) in pods.iter().enumerate() {
            progress.detail(&format!("{count} pods: {what} of {}", number + 1));
            pod.sleeper.wait_state("asleep")?;
        }
        Ok(())
    };
    asleep("sleep")?;
    let groups: Vec<_> = pods.iter().map(|pod| pod.group.as_str()).collect();
    let kept = Kept::of(&groups)?;
    progress.detail(&format!("{count} pods: what probes cost"));
    let cost = Cost::watch()?;
    let mut last = Samples::default();
    let addresses: Vec<_> = pods.iter().map(|pod| pod.address).collect();
    for round in 1..=ROUNDS {
        asleep("sleep")?;
        let times = wake_all(&addresses, round)?;
        last.add(times.into_iter().map(ms).fold(0.0, f64::max));
    }
    progress.end(&format!("{count} pods asleep, with probes every second"));

    let detail = |what: &str, bytes: f64| Figure::new(format!("  {what}"), "MB", bytes / 1e6);
    Ok(vec![
        Figure::new(
            "a pod asleep keeps, everything counted",
            "MB",
            kept.all() / 1e6,
        ),
        detail(
            "its control group, the pause process included",
            kept.group(),
        ),
        detail(
            "its shim and keeper, shared pages divided",
            kept.processes(),
        ),
        Figure::new(
            format!("{count} pods asleep, two probes a second each: their shims"),
            "% of a core",
            cost.shims,
        )
        .beside("the kubelet that asks", cost.kubelet.into()),
        Figure::new(
            format!("{count} pods woken at once, last first byte"),
            "ms",
            last,
        ),
    ])
}

/// Measures with a single pod that holds 50 MiB and sleeps by itself, where nothing else happens than what a node does anyway. A
/// machine that is left alone altogether has its processors taken away by its host again and again, and each step takes longer.
pub fn measure_one(versions: Versions, rounds: u64, progress: &Progress) -> Result<Vec<Figure>> {
    progress.begin("a pod: Kubernetes");
    let cluster = Cluster::start(Node::start(versions)?)?;
    cluster.sleep(Depth::Light)?;
    let kubectl = cluster.kubectl();
    kubectl.apply(&json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": ONE,
            "labels": {"bench": ONE},
            "annotations": {"komodor.com/podmotion-scaledown-duration": "2s"},
        },
        "spec": {
            "runtimeClassName": "podmotion",
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "containers": [app(ONE_MB)],
        },
    }))?;
    let name = format!("pod/{ONE}");
    kubectl.run(&["wait", "--for=condition=Ready", &name, "--timeout=60s"])?;
    let pods = Pod::all(&cluster, ONE)?;
    let [pod] = &pods[..] else {
        bail!("{} pods of one", pods.len());
    };
    let times = ByItself::measure(&pod.sleeper, pod.address, rounds, |number| {
        progress.detail(&format!("a pod asleep by itself, {number} of {rounds}"));
    })?;
    // Others count the shims that there are.
    kubectl.run(&["delete", &name])?;
    progress.end(&format!("a pod asleep by itself, {rounds} times"));
    let name = format!("a pod with {ONE_MB} MB, light sleep by itself");
    let [sleep, frozen] = times.figures(&name);
    Ok(vec![sleep.target(Target::AtMost(SECOND_SLEEP_MS)), frozen])
}

/// The Python server, with so many MiB.
fn app(mb: u32) -> Value {
    json!({
        "name": "app",
        "image": Image::Apps.reference(),
        "imagePullPolicy": "Never",
        "command": ["python3", "/apps/counter.py"],
        "env": [
            {"name": "PORT", "value": PORT.to_string()},
            {"name": "MEM_MB", "value": mb.to_string()},
        ],
    })
}

fn deployment(count: usize) -> Value {
    let every_second = json!({"periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 30});
    let probe = |kind: &str, what: Value| {
        let mut probe = every_second.clone();
        probe[kind] = what;
        probe
    };
    let mut starting = probe("tcpSocket", json!({"port": PORT}));
    // All at once they are slow to start, on any machine.
    starting["failureThreshold"] = json!(600);
    let mut container = app(0);
    container["startupProbe"] = starting;
    container["readinessProbe"] = probe("httpGet", json!({"path": "/mem", "port": PORT}));
    container["livenessProbe"] = probe("tcpSocket", json!({"port": PORT}));
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME},
        "spec": {
            "replicas": count,
            "selector": {"matchLabels": {"bench": NAME}},
            "template": {
                "metadata": {
                    "labels": {"bench": NAME},
                    "annotations": {"komodor.com/podmotion-scaledown-duration": "2s"},
                },
                "spec": {
                    "runtimeClassName": "podmotion",
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 1,
                    "containers": [container],
                },
            },
        },
    })
}

struct Pod {
    address: SocketAddr,
    sleeper: Sleeper,
    /// The control group that all of its containers are below.
    group: String,
}

impl Pod {
    fn all(cluster: &Cluster, label: &str) -> Result<Vec<Self>> {
        let selector = format!("--selector=bench={label}");
        let pods = cluster.kubectl().get(&["pods", &selector])?;
        let pods = pods["items"].as_array().context("no list of pods")?;
        pods.iter()
            .map(|pod| {
                let ip: IpAddr = pod["status"]["podIP"]
                    .as_str()
                    .context("a pod without an address")?
                    .parse()?;
                let id = container_id(&pod["status"]["containerStatuses"][0])?;
                let container = cgroup_of(id)?;
                let (group, _) = container.rsplit_once('/').context("no group of a pod")?;
                Ok(Self {
                    address: SocketAddr::new(ip, PORT),
                    sleeper: Sleeper::find(id)?,
                    group: group.to_owned(),
                })
            })
            .collect()
    }
}

/// What processes take of one core, in percent.
struct Cost {
    shims: f64,
    kubelet: f64,
}

impl Cost {
    fn watch() -> Result<Self> {
        let of = |wanted: &dyn Fn(&OwnProcess) -> bool| -> Result<u64> {
            let processes = own_processes()?;
            Ok(processes.iter().filter(|one| wanted(one)).map(spent).sum())
        };
        let is_shim = |one: &OwnProcess| one.is("containerd-shim-podmotion-v1");
        let is_kubelet = |one: &OwnProcess| one.is("kubelet");
        let (shims, kubelet, began) = (of(&is_shim)?, of(&is_kubelet)?, Instant::now());
        thread::sleep(WATCHED);
        let share = |before: u64, after: u64| {
            let spent = Duration::from_nanos(after.saturating_sub(before));
            100.0 * spent.as_secs_f64() / began.elapsed().as_secs_f64()
        };
        Ok(Self {
            shims: share(shims, of(&is_shim)?),
            kubelet: share(kubelet, of(&is_kubelet)?),
        })
    }
}

/// Nanoseconds on a processor of all of a process's threads (Documentation/scheduler/sched-stats.rst).
fn spent(process: &OwnProcess) -> u64 {
    let threads = fs::read_dir(format!("/proc/{}/task", process.pid));
    let threads = threads.into_iter().flatten().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum()
}
