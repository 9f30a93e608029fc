//! What the manager shows of sleeping pods, with no more rights than the chart gives it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Cluster, KubePod, Manager, PATIENCE, Relay};
use serde_json::{Value, json};

use super::Body;
use super::counter::{PORT, count, goes_on, start, status};
use super::manifest::{With, counter, pod};

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "kube::manager::a_pod_shows_its_sleep",
        a_pod_shows_its_sleep,
    ),
    (
        "kube::manager::a_failure_is_told_with_crius_own_line",
        a_failure_is_told_with_crius_own_line,
    ),
    (
        "kube::manager::requests_shrink_asleep_and_come_back",
        requests_shrink_asleep_and_come_back,
    ),
    (
        "kube::manager::the_taint_goes_once_the_self_test_holds",
        the_taint_goes_once_the_self_test_holds,
    ),
    (
        "kube::manager::it_is_ready_again_after_the_api_server_was_away",
        it_is_ready_again_after_the_api_server_was_away,
    ),
];

const ACCOUNT: &str = "podmotion-manager";
const ORIGINALS: &str = r"podmotion\.komodor\.com/original-requests";

/// Its rights, as in the chart.
fn rules() -> Value {
    json!([
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": [""], "resources": ["pods/status", "pods/resize"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]},
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
    ])
}

/// A manager of the first node, which says who it is with a service account's token.
fn manager(cluster: &Cluster, flags: &[&str]) -> Result<Manager> {
    Account::new(cluster)?.start(cluster, flags)
}

/// A service account for managers.
pub(super) struct Account {
    kubeconfig: PathBuf,
}

impl Account {
    pub(super) fn new(cluster: &Cluster) -> Result<Self> {
        let kubeconfig = kubeconfig(cluster)?;
        Ok(Self { kubeconfig })
    }

    /// A manager of the first node with it.
    pub(super) fn start(&self, cluster: &Cluster, flags: &[&str]) -> Result<Manager> {
        let config = self.kubeconfig.to_str().context("a path of letters")?;
        let arguments = [&["--node-name=node-1"], flags].concat();
        Manager::start_with(cluster.node(), &arguments, &[("KUBECONFIG", config)])
    }
}

fn kubeconfig(cluster: &Cluster) -> Result<PathBuf> {
    let kubectl = cluster.kubectl();
    for object in [
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT},
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": ACCOUNT}, "rules": rules(),
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": ACCOUNT},
            "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": "default"}],
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ACCOUNT,
            },
        }),
    ] {
        kubectl.apply(&object)?;
    }
    let token = kubectl.run(&["create", "token", ACCOUNT])?;
    let text = fs::read_to_string(kubectl.config()).context("read the admin's configuration")?;
    let mut config: Value = serde_json::from_str(&text).context("parse it")?;
    config["users"][0]["user"] = json!({"token": token.trim()});
    let path = cluster.node().folder().join("manager.kubeconfig");
    fs::write(&path, config.to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Nothing changes meanwhile that the API server could tell of when it is back.
fn it_is_ready_again_after_the_api_server_was_away(cluster: &Cluster) -> Result<()> {
    let path = kubeconfig(cluster)?;
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    let server = &mut config["clusters"][0]["cluster"];
    let address = server["server"].as_str().context("no server")?;
    let address = address.trim_start_matches("https://").parse()?;
    let relay = Relay::start(address)?;
    server["server"] = json!(format!("https://{}", relay.address()));
    server["tls-server-name"] = json!("kubernetes.default.svc");
    fs::write(&path, config.to_string())?;
    let path = path.to_str().context("a path of letters")?;
    let flags = ["--node-name=node-1", "--status-labels"];
    let mut manager = Manager::start_with(cluster.node(), &flags, &[("KUBECONFIG", path)])?;
    relay.cut();
    manager.wait_ready(503)?;
    relay.mend();
    manager.wait_ready(200)
}

fn wait(cluster: &Cluster, pod: &KubePod<'_>, condition: &str) -> Result<()> {
    cluster
        .kubectl()
        .wait(&format!("pod/{}", pod.name()), condition)
        .with_context(|| condition.to_owned())
}

fn label(value: &str) -> String {
    format!(r"jsonpath={{.metadata.labels.status\.podmotion\.komodor\.com/app}}={value}")
}

/// The notes of a pod's events with this reason, oldest first, once there are so many.
fn notes(cluster: &Cluster, pod: &KubePod<'_>, reason: &str) -> Result<Vec<String>> {
    let fields = format!(
        "--field-selector=involvedObject.name={},reason={reason}",
        pod.name()
    );
    let deadline = Instant::now() + PATIENCE;
    loop {
        let list = cluster.kubectl().get(&["events", &fields])?;
        let items = list["items"].as_array().context("no list")?;
        let notes: Vec<_> = items
            .iter()
            .filter_map(|event| event["message"].as_str())
            .map(str::to_owned)
            .collect();
        if !notes.is_empty() {
            return Ok(notes);
        }
        ensure!(Instant::now() < deadline, "no event {reason}");
        thread::sleep(Duration::from_millis(100));
    }
}

fn a_pod_shows_its_sleep(cluster: &Cluster) -> Result<()> {
    let _manager = manager(cluster, &["--status-labels", "--status-events"])?;
    let pod = start(cluster, &pod(vec![counter("app", PORT)]))?;
    wait(cluster, &pod, &label("Running"))?;
    wait(
        cluster,
        &pod,
        "condition=podmotion.komodor.com/Asleep=False",
    )?;
    ensure!(count(&pod)? == 1);
    pod.container("app")?.sleeper.sleep()?;
    wait(cluster, &pod, &label("ScaledDown"))?;
    wait(cluster, &pod, "condition=podmotion.komodor.com/Asleep")?;
    // The kubelet writes the pod's status as well, and leaves the condition.
    wait(cluster, &pod, "condition=Ready")?;
    let depth = cluster.node().depth();
    let slept = notes(cluster, &pod, "FellAsleep")?;
    ensure!(
        slept == [format!("Container app fell into {depth} sleep")],
        "{slept:?}"
    );
    goes_on(&pod)?;
    wait(cluster, &pod, &label("Running"))?;
    wait(
        cluster,
        &pod,
        "condition=podmotion.komodor.com/Asleep=False",
    )?;
    let woke = notes(cluster, &pod, "Woke")?;
    ensure!(
        woke == [format!("Container app woke from {depth} sleep (traffic)")],
        "{woke:?}"
    );
    Ok(())
}

/// A CRIU that dumps nothing once the file beside it is there, and says so as CRIU would: after it has read
/// what is asked of it.
const FAILING: &str = "#!/bin/sh\nif [ -e '@fails@' ]; then dd bs=64k count=1 <&3 >/dev/null 2>&1\n\
                       echo 'Error (fake/cr.c:7): cannot dump' >&2; exit 1; fi\nexec '@real@' \"$@\"\n";

fn a_failure_is_told_with_crius_own_line(cluster: &Cluster) -> Result<()> {
    let _manager = manager(cluster, &["--status-events"])?;
    let node = cluster.node();
    let (fake, fails) = (node.folder().join("fake-criu"), node.folder().join("fails"));
    let script = FAILING
        .replace("@fails@", &fails.display().to_string())
        .replace("@real@", &node.tools().criu()?.display().to_string());
    fs::write(&fake, script)?;
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755))?;
    let settings = node.set(&format!("criu.binary = \"{}\"", fake.display()))?;
    let mut manifest = pod(vec![counter("app", PORT)]);
    manifest["metadata"]["annotations"]["komodor.com/podmotion-deep-sleep-after"] = json!("0");
    let pod = start(cluster, &manifest)?;
    drop(settings);
    ensure!(count(&pod)? == 1);
    let sleeper = pod.container("app")?.sleeper;
    sleeper.sleep()?;
    ensure!(count(&pod)? == 2);
    sleeper.wait_whole()?;
    fs::write(&fails, "")?;
    let refused = sleeper.try_sleep();
    fs::remove_file(&fails)?;
    ensure!(refused.is_err(), "it sleeps without CRIU");
    let error = status(&pod)?.last_error;
    ensure!(
        error.contains("Error (fake/cr.c:7): cannot dump"),
        "{error}"
    );
    let told = notes(cluster, &pod, "SleepFailed")?;
    ensure!(
        told == [format!("Container app did not fall asleep: {error}")],
        "{told:?}, and the shim says {error:?}"
    );
    ensure!(count(&pod)? == 3 && pod.restarts("app")? == 0);
    Ok(())
}

fn requests_shrink_asleep_and_come_back(cluster: &Cluster) -> Result<()> {
    let flags = ["--reduce-requests", "--status-events"];
    let first = manager(cluster, &flags)?;
    let app = counter("app", PORT).with(
        "resources",
        json!({"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "200Mi"}}),
    );
    let pod = start(cluster, &pod(vec![app]))?;
    ensure!(count(&pod)? == 1);
    pod.container("app")?.sleeper.sleep()?;
    let requests = |cpu: &str, memory: &str| -> Result<()> {
        for (path, value) in [
            (".spec.containers[0].resources.requests.cpu", cpu),
            (".spec.containers[0].resources.requests.memory", memory),
            // What the kubelet has made of it.
            (".status.containerStatuses[0].resources.requests.cpu", cpu),
            (
                ".status.containerStatuses[0].resources.requests.memory",
                memory,
            ),
        ] {
            wait(cluster, &pod, &format!("jsonpath={{{path}}}={value}"))?;
        }
        Ok(())
    };
    requests("1m", "16Mi")?;
    let seen = status(&pod)?;
    ensure!(
        seen.state == "asleep" && seen.counters.wakes == 0,
        "{seen:?}"
    );
    let limits = &pod.get()?["spec"]["containers"][0]["resources"]["limits"];
    ensure!(*limits == json!({"memory": "200Mi"}), "{limits}");

    // Back with the wake.
    goes_on(&pod)?;
    requests("100m", "64Mi")?;
    let forgotten = format!("jsonpath={{.metadata.annotations.{ORIGINALS}}}");
    let left = || {
        cluster
            .kubectl()
            .run(&["get", "pod", pod.name(), "--output", &forgotten])
    };
    wait_empty(left)?;

    // By the next manager, if the first one dies meanwhile.
    pod.container("app")?.sleeper.sleep()?;
    requests("1m", "16Mi")?;
    first.kill()?;
    ensure!(count(&pod)? == 3);
    let second = manager(cluster, &flags)?;
    requests("100m", "64Mi")?;
    drop(second);

    // By one without the flag, even asleep.
    let third = manager(cluster, &flags)?;
    pod.container("app")?.sleeper.sleep()?;
    requests("1m", "16Mi")?;
    drop(third);
    let _fourth = manager(cluster, &[])?;
    requests("100m", "64Mi")?;
    wait_empty(left)?;
    ensure!(status(&pod)?.state == "asleep" && pod.restarts("app")? == 0);
    left_alone(cluster, &flags)
}

/// Of a pod whose class would change nothing is touched, and that is said.
fn left_alone(cluster: &Cluster, flags: &[&str]) -> Result<()> {
    let _manager = manager(cluster, flags)?;
    let whole = json!({"cpu": "100m", "memory": "200Mi"});
    let app = counter("app", PORT).with("resources", json!({"requests": whole, "limits": whole}));
    let guaranteed = start(cluster, &pod(vec![app]))?;
    ensure!(count(&guaranteed)? == 1);
    guaranteed.container("app")?.sleeper.sleep()?;
    let told = notes(cluster, &guaranteed, "RequestsKept")?;
    ensure!(
        told.len() == 1 && told[0].contains("Guaranteed"),
        "{told:?}"
    );
    let requests = &guaranteed.get()?["spec"]["containers"][0]["resources"]["requests"];
    ensure!(*requests == whole, "{requests}");
    Ok(())
}

fn wait_empty(text: impl Fn() -> Result<String>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = text()?;
        if text.trim().is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "still {text}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The node is given its taint, and whatever was there of a self-test goes in the end.
struct Tainted<'a>(&'a Cluster);

const TAINT: &str = "podmotion.komodor.com/not-ready";
const SELF_TEST: &str = "/run/podmotion/self-test.json";

impl<'a> Tainted<'a> {
    fn new(cluster: &'a Cluster) -> Result<Self> {
        let taint = format!("{TAINT}=:NoSchedule");
        cluster
            .kubectl()
            .run(&["taint", "node", "node-1", &taint])?;
        Ok(Self(cluster))
    }
}

impl Drop for Tainted<'_> {
    fn drop(&mut self) {
        // Both are gone after a test that went well, or partly.
        let _ = fs::remove_file(SELF_TEST);
        let taint = format!("{TAINT}-");
        let _ = self.0.kubectl().run(&["taint", "node", "node-1", &taint]);
    }
}

fn the_taint_goes_once_the_self_test_holds(cluster: &Cluster) -> Result<()> {
    let tainted = Tainted::new(cluster)?;
    let manager = manager(cluster, &[])?;
    let taints = || {
        cluster
            .kubectl()
            .run(&["get", "node", "node-1", "--output=jsonpath={.spec.taints}"])
    };
    let seen = |wanted: f64, finished: f64| {
        manager.wait("the result", |seen| {
            let now = (
                seen.samples("podmotion_self_test_passed", &[]),
                seen.samples("podmotion_self_test_timestamp_seconds", &[]),
            );
            let is = now == (vec![wanted], vec![finished]);
            Ok((!is).then(|| anyhow::anyhow!("{now:?}")))
        })
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("ask for the kernel")?;
    let report = |passed: bool, kernel: &str, finished: &str| -> Result<()> {
        let text = json!({
            "passed": passed, "error": if passed { Value::Null } else { json!("CRIU") },
            "kernel": kernel, "containerd": "2", "podmotion": "0.1.0",
            "finished": finished, "steps": [],
        });
        let new = Path::new(SELF_TEST).with_extension("new");
        fs::write(&new, text.to_string())?;
        fs::rename(&new, SELF_TEST).context("put the report in its place")
    };
    report(false, kernel.trim(), "2001-09-09T01:46:40Z")?;
    seen(0.0, 1e9)?;
    report(true, "2.6.32", "2001-09-09T01:46:41Z")?;
    seen(0.0, 1e9 + 1.0)?;
    ensure!(taints()?.contains(TAINT), "{}", taints()?);
    report(true, kernel.trim(), "2001-09-09T01:46:42Z")?;
    seen(1.0, 1e9 + 2.0)?;
    let ours = || {
        Ok(if taints()?.contains(TAINT) {
            taints()?
        } else {
            String::new()
        })
    };
    wait_empty(ours)?;
    drop(tainted);
    Ok(())
}
