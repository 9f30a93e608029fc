//! An operator's whole way, with the images as they are built: an untouched node gets its label, pods sleep on
//! it through changes of the chart and the end of the manager, and the node is given back as it was.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use podmotion_integration_tests::{
    Client, Cluster, Image, KubePod, Node, PATIENCE, Runtime, Scrape, Sleeper, Status, container_id,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{DAEMONSET, Installed, NAMESPACE, gone, is_there, rolled_out, upgrade};
use crate::images;
use crate::install::node::{RESTART, dump, files, same};
use crate::kube::counter::{PORT, count, start};
use crate::kube::manifest::{With, counter, pod};

const NODE: &str = "node-3";
const LABEL: &str = "komodor.com/podmotion-node";
const TAINT: &str = "podmotion.komodor.com/not-ready";
const METRICS: u16 = 8080;

pub(super) fn a_node_gets_it_and_is_given_back(cluster: &Cluster) -> Result<()> {
    let node = cluster.add_bare_node(&[Image::Apps])?;
    let _guard = Guard(cluster);
    let way = Way { cluster, node };
    let values = way.values()?;
    let values = ["--values", &values];
    let (before, (_, settings)) = (files(node)?, dump(node)?);

    // The class is the installer's here.
    gone(cluster, "runtimeclass/podmotion")?;
    let kubectl = cluster.kubectl();
    kubectl.run(&["taint", "nodes", NODE, &format!("{TAINT}=:NoSchedule")])?;
    let installed = Installed::with(cluster, &values)?;
    kubectl.run(&["label", "nodes", NODE, &format!("{LABEL}=true")])?;
    let said = way.installer_ends("install")?;
    ensure!(said.contains("self-test: "), "{said}");
    rolled_out(cluster)?;
    way.has_no_taint()?;
    let (whole, rest) = dump(node)?;
    ensure!(whole.contains("io.containerd.podmotion.v1"), "{whole}");
    ensure!(
        rest == settings,
        "settings were lost:\n{settings}\n\n{rest}"
    );
    let class = kubectl.get(&["runtimeclass/podmotion"])?;
    ensure!(
        class["overhead"]["podFixed"]["memory"].is_string(),
        "{class}"
    );

    // Nothing says where it is to go but its class.
    let requests = json!({"requests": {"cpu": "100m", "memory": "64Mi"}});
    let mut manifest = pod(vec![counter("app", PORT).with("resources", requests)]);
    let idle = json!({"komodor.com/podmotion-scaledown-duration": "1s"});
    manifest["metadata"] = manifest["metadata"].take().with("annotations", idle);
    let pod = start(cluster, &manifest)?;
    ensure!(pod.get()?["spec"]["nodeName"] == NODE);
    let sleeper = pod.container("app")?.sleeper;
    let turn = |expected: u64| turn(&pod, &sleeper, expected);
    turn(1)?;
    turn(2)?;
    way.figures_are(&pod, &sleeper)?;

    // Another chart, while it sleeps.
    let more = [
        &values[..],
        &[
            "--set",
            "manager.statusLabels=true,manager.reduceRequests=true,config.sleep.answer_wait=3m",
        ],
    ]
    .concat();
    upgrade(cluster, &more)?;
    let said = way.installer_ends("upgrade")?;
    ensure!(!said.contains(RESTART), "containerd was restarted: {said}");
    rolled_out(cluster)?;
    let name = format!("pod/{}", pod.name());
    let label = |value: &str| {
        format!(r"jsonpath={{.metadata.labels.status\.podmotion\.komodor\.com/app}}={value}")
    };
    kubectl.wait(&name, &label("ScaledDown"))?;
    let requested = |cpu: &str| {
        let path = "{.spec.containers[0].resources.requests.cpu}";
        kubectl.wait(&name, &format!("jsonpath={path}={cpu}"))
    };
    requested("1m")?;
    turn(3)?;

    // Its manager goes, and nothing else.
    let manager = way.member()?;
    way.kill_manager(&manager)?;
    turn(4)?;
    let member = manager["metadata"]["name"].as_str().context("no name")?;
    let again = "jsonpath={.status.containerStatuses[0].restartCount}=1";
    let manager = format!("pod/{member}");
    kubectl.run(&[
        "wait",
        "--namespace",
        NAMESPACE,
        "--timeout=60s",
        "--for",
        again,
        &manager,
    ])?;
    rolled_out(cluster)?;
    way.figures_are(&pod, &sleeper)?;

    // A self-test with another kernel counts for nothing: the manager makes it again.
    way.self_test_is_made_again()?;
    way.figures_are(&pod, &sleeper)?;

    // The label goes and comes: what is on the node stays.
    kubectl.run(&["label", "nodes", NODE, &format!("{LABEL}-")])?;
    kubectl.run(&[
        "wait",
        "--namespace",
        NAMESPACE,
        "--timeout=60s",
        "--for=delete",
        &manager,
    ])?;
    turn(5)?;
    kubectl.run(&["label", "nodes", NODE, &format!("{LABEL}=true")])?;
    let said = way.installer_ends("label again")?;
    ensure!(!said.contains(RESTART), "containerd was restarted: {said}");
    rolled_out(cluster)?;
    way.figures_are(&pod, &sleeper)?;

    requested("1m")?;
    let off = [&values[..], &["--set", "uninstall.enabled=true"]].concat();
    upgrade(cluster, &off)?;
    let said = way.installer_ends("uninstall")?;
    ensure!(said.contains(": awake"), "{said}");
    rolled_out(cluster)?;
    ensure_left(&pod)?;
    installed.uninstall()?;
    ensure!(!is_there(cluster, DAEMONSET, NAMESPACE)?);
    ensure!(!is_there(cluster, "runtimeclass/podmotion", NAMESPACE)?);
    same("after uninstall", &before, &files(node)?)?;
    let (whole, rest) = dump(node)?;
    ensure!(
        !whole.contains("podmotion.v1") && rest == settings,
        "{whole}"
    );
    ensure!(count(&pod)? == 6, "it has lost its memory");
    ensure!(pod.restarts("app")? == 0);
    pod.delete()?;
    // The manager's pod, whose shim is containerd's own, may still be on its way out. Ours ends after its pod.
    until(|| {
        let mut shims = node.shims()?;
        shims.retain(|shim| shim.is(Runtime::Podmotion.shim()));
        Ok((!shims.is_empty()).then(|| anyhow!("shims are left: {shims:?}")))
    })?;
    same("after all", &before, &files(node)?)
}

/// That the pod has nothing of ours any more, and all of its own.
fn ensure_left(pod: &KubePod<'_>) -> Result<()> {
    let now = pod.get()?;
    let requests = &now["spec"]["containers"][0]["resources"]["requests"];
    ensure!(
        *requests == json!({"cpu": "100m", "memory": "64Mi"}),
        "{requests}"
    );
    let ours = |value: &Value| value.to_string().contains("podmotion.komodor.com/");
    let metadata = &now["metadata"];
    ensure!(
        !ours(&metadata["labels"]) && !ours(&metadata["annotations"]),
        "{metadata}"
    );
    ensure!(!ours(&now["status"]["conditions"]), "{}", now["status"]);
    Ok(())
}

/// The next request, after which the container falls asleep by itself.
fn turn(pod: &KubePod<'_>, sleeper: &Sleeper, expected: u64) -> Result<()> {
    let number = count(pod)?;
    ensure!(
        number == expected,
        "request {expected} is answered as {number}"
    );
    sleeper.wait_state("asleep")?;
    ensure!(pod.restarts("app")? == 0);
    Ok(())
}

/// The node, and the cluster that it is in.
struct Way<'a> {
    cluster: &'a Cluster,
    node: &'a Node,
}

impl Way<'_> {
    /// A file with values that make the chart fit this node, which has no registry and no systemd.
    fn values(&self) -> Result<String> {
        let mut values = json!({
            "installer": {"restart": "never"},
            "manager": {"containerdSocket": self.node.socket()},
            // Whatever else the machine does.
            "config": {
                "sleep": {"deep_sleep_after": "never"},
                "pressure": {"min_memory": 0, "min_disk": 0, "wake_min_memory": 0},
                "checkpoint": {"quota": 0},
            },
        });
        for name in ["installer", "manager"] {
            let image = images::import(self.node, &format!("podmotion-{name}"))?;
            let (repository, tag) = image.rsplit_once(':').context("an image without a tag")?;
            values["images"][name] =
                json!({"repository": repository, "tag": tag, "pullPolicy": "Never"});
        }
        let path = self.node.folder().join("values.json");
        std::fs::write(&path, values.to_string()).context("write the chart's values")?;
        Ok(path.display().to_string())
    }

    /// The newest of its pods on the node, once that is not on its way out.
    fn member(&self) -> Result<Value> {
        let selector = "--selector=app.kubernetes.io/name=komodor-podmotion-node";
        let list = self
            .cluster
            .kubectl()
            .get(&["pods", "--namespace", NAMESPACE, selector])?;
        let stays = |pod: &&Value| {
            pod["spec"]["nodeName"] == NODE && pod["metadata"]["deletionTimestamp"].is_null()
        };
        let pods = list["items"].as_array().context("no list")?;
        pods.iter()
            .find(stays)
            .cloned()
            .context("no pod of the DaemonSet")
    }

    /// Waits until the installer of the DaemonSet's newest generation has ended, and restarts containerd when it
    /// says so. Returns what it has said.
    fn installer_ends(&self, what: &str) -> Result<String> {
        let deadline = Instant::now() + 2 * PATIENCE;
        let set = super::daemonset(self.cluster)?;
        let generation = &set["metadata"]["generation"];
        let mut restarted = false;
        loop {
            // Pods are told by their template's generation: the controller labels them with it.
            let member = self.member().ok().filter(|pod| {
                let of = &pod["metadata"]["labels"]["pod-template-generation"];
                *of == json!(generation.to_string())
            });
            let name = member
                .as_ref()
                .and_then(|pod| pod["metadata"]["name"].as_str());
            let said = name.map(|name| {
                let log = [
                    "logs",
                    "--namespace",
                    NAMESPACE,
                    name,
                    "--container=installer",
                ];
                self.cluster.kubectl().run(&log).unwrap_or_default()
            });
            let said = said.unwrap_or_default();
            if said.lines().any(|line| line == RESTART) && !restarted {
                self.node.restart()?;
                restarted = true;
            }
            let status = member.map(|pod| pod["status"]["initContainerStatuses"][0].clone());
            let status = status.unwrap_or_default();
            match status["state"]["terminated"]["exitCode"].as_i64() {
                Some(0) => return Ok(said),
                Some(code) => bail!("{what}: the installer ends with {code}:\n{said}\n{status}"),
                None => {}
            }
            if let Some(code) = status["lastState"]["terminated"]["exitCode"].as_i64() {
                bail!("{what}: the installer ended with {code}:\n{said}\n{status}");
            }
            ensure!(
                Instant::now() < deadline,
                "{what}: no end:\n{said}\n{status}"
            );
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn has_no_taint(&self) -> Result<()> {
        until(|| {
            let node = self.cluster.kubectl().get(&[&format!("node/{NODE}")])?;
            let mut taints = node["spec"]["taints"].as_array().into_iter().flatten();
            let stays = taints.any(|taint| taint["key"] == TAINT);
            Ok(stays.then(|| anyhow!("the taint stays: {}", node["spec"])))
        })
    }

    /// Waits until the manager's figures of the pod are those that its shim tells.
    fn figures_are(&self, pod: &KubePod<'_>, sleeper: &Sleeper) -> Result<()> {
        let labels = [
            ("namespace", "default"),
            ("pod", pod.name()),
            ("container", "app"),
        ];
        let differ = || agree(&self.scrape()?, &labels, &sleeper.status()?);
        until(|| Ok(differ().err()))
    }

    fn scrape(&self) -> Result<Scrape> {
        let node = self.cluster.kubectl().get(&[&format!("node/{NODE}")])?;
        let mut addresses = node["status"]["addresses"].as_array().into_iter().flatten();
        let internal = addresses.find(|one| one["type"] == "InternalIP");
        let ip = internal
            .and_then(|one| one["address"].as_str())
            .context("no address")?;
        let address = SocketAddr::new(ip.parse()?, METRICS);
        let answer = Client::default().get(address, "/metrics")?;
        ensure!(answer.status == 200, "{answer:?}");
        Scrape::parse(&answer.body)
    }

    fn self_test_is_made_again(&self) -> Result<()> {
        let path = self.node.root().join("run/podmotion/self-test.json");
        let read = || -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(&path)?)?) };
        let mut report = read()?;
        let kernel = report["kernel"].take();
        report["kernel"] = json!("0.0.1");
        std::fs::write(&path, report.to_string()).context("write an old report")?;
        // It is replaced in one step.
        until(|| {
            let now = read()?;
            if now["kernel"] != kernel {
                return Ok(Some(anyhow!("still {now:#}")));
            }
            ensure!(now["passed"] == true, "{now:#}");
            Ok(None)
        })
    }

    fn kill_manager(&self, manager: &Value) -> Result<()> {
        let id = container_id(&manager["status"]["containerStatuses"][0])?;
        let output = self.node.ctr(["tasks", "ls"])?;
        let tasks = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = tasks.lines().find(|line| line.starts_with(id));
        let pid = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        let pid = pid.and_then(Pid::from_raw).with_context(|| tasks.clone())?;
        kill_process(pid, Signal::KILL).context("kill the manager")
    }
}

/// Looks until nothing is missing any more: what is looked at does not tell of its changes.
fn until(missing: impl Fn() -> Result<Option<Error>>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match missing()? {
            None => return Ok(()),
            Some(error) if Instant::now() >= deadline => return Err(error),
            Some(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn agree(seen: &Scrape, labels: &[(&str, &str)], status: &Status) -> Result<()> {
    let value = |name: &str, more: &[(&str, &str)]| {
        let all = seen.samples(name, &[labels, more].concat());
        ensure!(!all.is_empty(), "no {name}");
        Ok(all.into_iter().sum::<f64>())
    };
    let success = [("result", "success")];
    for (name, more, shim) in [
        (
            "podmotion_restores_total",
            &success[..],
            status.counters.wakes,
        ),
        (
            "podmotion_checkpoints_total",
            &success[..],
            status.counters.sleeps,
        ),
        (
            "podmotion_memory_freed_bytes",
            &[],
            status.memory_freed_bytes,
        ),
        ("podmotion_container_state", &[("state", &*status.state)], 1),
    ] {
        let figure = value(name, more)?;
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let shim = shim as f64;
        ensure!(
            figure == shim,
            "{name} is {figure}, and the shim says {shim}"
        );
    }
    ensure!(
        value("podmotion_container_state", &[])? == 1.0,
        "more than one state"
    );
    Ok(())
}

/// Gives the cluster back what the other tests know.
struct Guard<'a>(&'a Cluster);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // Tests that follow find no class, or pods where they should not be, and say so.
        let _ = self.0.kubectl().run(&["cordon", NODE]);
        let _ = self.0.make_runtime_class();
    }
}
