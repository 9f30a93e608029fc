//! Sleeping pods that end, or whose programs do: by themselves, by whoever owns them, by eviction.

use std::fs;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Cluster, KubePod, Kubectl};
use serde_json::{Value, json};

use super::Body;
use super::counter::{PORT, count, get};
use super::manifest::{With, counter, once, pod, script};
use super::piped::wait_listening;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "kube::ends::a_program_that_ends_after_a_wake_is_restarted_as_its_policy_says",
        a_program_that_ends_after_a_wake_is_restarted_as_its_policy_says,
    ),
    (
        "kube::ends::eviction_wakes_only_when_the_budget_allows_it",
        eviction_wakes_only_when_the_budget_allows_it,
    ),
    (
        "kube::ends::all_pods_of_a_node_told_to_end_at_once_hear_of_it",
        all_pods_of_a_node_told_to_end_at_once_hear_of_it,
    ),
    (
        "kube::ends::pods_are_told_when_the_machine_is_shut_down",
        pods_are_told_when_the_machine_is_shut_down,
    ),
    (
        "kube::ends::a_rollout_replaces_pods_that_sleep",
        a_rollout_replaces_pods_that_sleep,
    ),
    (
        "kube::ends::a_job_whose_pod_has_slept_completes",
        a_job_whose_pod_has_slept_completes,
    ),
];

fn a_program_that_ends_after_a_wake_is_restarted_as_its_policy_says(
    cluster: &Cluster,
) -> Result<()> {
    let pods = ["Always", "OnFailure", "Never"]
        .into_iter()
        .map(|policy| {
            let mut manifest = pod(vec![once("app", PORT, 3)]);
            manifest["spec"]["restartPolicy"] = json!(policy);
            cluster.create(&manifest)
        })
        .collect::<Result<Vec<_>>>()?;
    for pod in &pods {
        pod.wait_ready()?;
        wait_listening(cluster, pod, "app")?;
        pod.container("app")?.sleeper.sleep()?;
        let answer = get(pod, PORT)?;
        ensure!(answer.body == "bye\n", "{answer:?}");
    }
    let wait = |pod: &KubePod<'_>, path: &str| {
        let name = format!("pod/{}", pod.name());
        cluster.kubectl().wait(&name, &format!("jsonpath={path}"))
    };
    let [always, on_failure, never] = pods.as_slice() else {
        unreachable!("three policies");
    };
    for pod in [always, on_failure] {
        let last = "{.status.containerStatuses[0].lastState.terminated";
        wait(pod, &format!("{last}.exitCode}}=3"))?;
        wait(pod, &format!("{last}.reason}}=Error"))?;
        wait(pod, "{.status.containerStatuses[0].restartCount}=1")?;
        pod.wait_ready()?;
    }
    wait(never, "{.status.phase}=Failed")?;
    let ended = &never.get()?["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(ended["exitCode"] == 3, "{ended}");
    ensure!(never.restarts("app")? == 0);
    Ok(())
}

/// A folder of the node that a container writes to.
struct Witness(std::path::PathBuf);

impl Witness {
    fn new(cluster: &Cluster, name: &str) -> Result<Self> {
        let folder = cluster.node().folder().join(name);
        fs::create_dir_all(&folder).context("create the witness's folder")?;
        Ok(Self(folder))
    }

    /// A pod that writes `<its name> term` there when it is told to end, once it says that it listens: without
    /// its trap the first process of a namespace does not hear of TERM.
    fn pod(&self) -> Value {
        let app = script(
            "app",
            "trap 'echo $HOSTNAME term >> /witness/log; exit 0' TERM; echo listening; \
             while :; do sleep 1; done",
        )
        .with(
            "volumeMounts",
            json!([{"name": "witness", "mountPath": "/witness"}]),
        );
        let mut manifest = pod(vec![app]);
        manifest["spec"]["volumes"] = json!([{"name": "witness", "hostPath": {"path": self.0}}]);
        manifest
    }

    /// What was written, in the order of names.
    fn lines(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.0.join("log")).context("read the witness")?;
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        Ok(lines)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn eviction_wakes_only_when_the_budget_allows_it(cluster: &Cluster) -> Result<()> {
    let witness = Witness::new(cluster, "evicted")?;
    let mut manifest = witness.pod();
    manifest["metadata"]["labels"] = json!({"app": "evicted"});
    let pod = cluster.run(&manifest)?;
    let budget = |available: u32, allowed: u32| {
        cluster.kubectl().apply(&json!({
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "evicted"},
            "spec": {
                "minAvailable": available,
                "selector": {"matchLabels": {"app": "evicted"}},
            },
        }))?;
        let allowed = format!("jsonpath={{.status.disruptionsAllowed}}={allowed}");
        cluster.kubectl().wait("pdb/evicted", &allowed)
    };
    let _budget = Owned::new(cluster, "pdb/evicted");
    budget(1, 0)?;
    wait_listening(cluster, &pod, "app")?;
    let sleeper = pod.container("app")?.sleeper;
    sleeper.sleep()?;
    let path = format!("/api/v1/namespaces/default/pods/{}/eviction", pod.name());
    let evict = || {
        cluster.kubectl().create_raw(
            &path,
            &json!({
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": pod.name(), "namespace": "default"},
            }),
        )
    };
    let refused = evict().err().context("evicted in spite of its budget")?;
    ensure!(
        format!("{refused:#}").contains("disruption budget"),
        "{refused:#}"
    );
    let status = sleeper.status()?;
    ensure!(
        status.state == "asleep" && status.counters.wakes == 0,
        "{status:?}"
    );
    budget(0, 1)?;
    evict()?;
    cluster
        .kubectl()
        .wait(&format!("pod/{}", pod.name()), "delete")?;
    ensure!(witness.lines()? == [format!("{} term", pod.name())]);
    Ok(())
}

fn pods_are_told_when_the_machine_is_shut_down(cluster: &Cluster) -> Result<()> {
    let witness = Witness::new(cluster, "shutdown")?;
    let (settings, logind) = cluster.set_kubelet_with_logind(&json!({
        "shutdownGracePeriod": "30s",
        "shutdownGracePeriodCriticalPods": "5s",
    }))?;
    let pods = (0..3)
        .map(|_| cluster.create(&witness.pod()))
        .collect::<Result<Vec<_>>>()?;
    for pod in &pods {
        pod.wait_ready()?;
        wait_listening(cluster, pod, "app")?;
        pod.container("app")?.sleeper.sleep()?;
    }
    logind.shut_down()?;
    let mut expected: Vec<_> = pods
        .iter()
        .map(|pod| format!("{} term", pod.name()))
        .collect();
    expected.sort();
    ensure!(witness.lines()? == expected, "{:?}", witness.lines()?);
    for pod in &pods {
        // The kubelet tells the API server in its own time.
        cluster.kubectl().wait(
            &format!("pod/{}", pod.name()),
            "jsonpath={.status.containerStatuses[0].state.terminated}",
        )?;
        let seen = pod.get()?;
        let status = &seen["status"];
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        ensure!(
            conditions.any(|one| one["reason"] == "TerminationByKubelet"),
            "{status}"
        );
        let ended = &status["containerStatuses"][0]["state"]["terminated"];
        ensure!(ended["exitCode"] == 0, "{status}");
    }
    logind.go_on()?;
    drop(settings);
    cluster.kubectl().wait("node/node-1", "condition=Ready")
}

fn all_pods_of_a_node_told_to_end_at_once_hear_of_it(cluster: &Cluster) -> Result<()> {
    let witness = Witness::new(cluster, "deleted")?;
    let pods = (0..5)
        .map(|_| cluster.create(&witness.pod()))
        .collect::<Result<Vec<_>>>()?;
    for pod in &pods {
        pod.wait_ready()?;
        wait_listening(cluster, pod, "app")?;
        pod.container("app")?.sleeper.sleep()?;
    }
    let names: Vec<_> = pods.iter().map(KubePod::name).collect();
    cluster
        .kubectl()
        .run(&[&["delete", "pod"], names.as_slice()].concat())?;
    let mut expected: Vec<_> = names.iter().map(|name| format!("{name} term")).collect();
    expected.sort();
    ensure!(witness.lines()? == expected, "{:?}", witness.lines()?);
    Ok(())
}

/// Something that owns pods. Dropping it deletes it, and so them.
struct Owned<'a> {
    kubectl: &'a Kubectl,
    name: &'static str,
}

impl<'a> Owned<'a> {
    fn new(cluster: &'a Cluster, name: &'static str) -> Self {
        let kubectl = cluster.kubectl();
        Self { kubectl, name }
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        let delete = ["delete", self.name, "--ignore-not-found", "--wait=false"];
        let _ = self.kubectl.run(&delete);
    }
}

/// A pod's manifest as a template of what owns it.
fn template(mut manifest: Value, app: &str) -> Value {
    let metadata = manifest["metadata"].take();
    let annotations = metadata["annotations"].clone();
    let labels = json!({"app": app});
    json!({
        "metadata": {"annotations": annotations, "labels": labels},
        "spec": manifest["spec"],
    })
}

/// The pods with this label that are not on their way out.
fn pods_of<'a>(cluster: &'a Cluster, app: &str) -> Result<Vec<KubePod<'a>>> {
    let label = format!("--selector=app={app}");
    let list = cluster.kubectl().get(&["pods", &label])?;
    let pods = list["items"].as_array().into_iter().flatten();
    pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .map(|pod| {
            let name = pod["metadata"]["name"].as_str();
            Ok(cluster.pod(name.context("a pod without a name")?))
        })
        .collect()
}

fn a_rollout_replaces_pods_that_sleep(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    let _deployment = Owned::new(cluster, "deployment/rolled");
    kubectl.apply(&json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "rolled"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "rolled"}},
            "template": template(pod(vec![counter("app", PORT)]), "rolled"),
        },
    }))?;
    let done = || kubectl.run(&["rollout", "status", "deployment/rolled", "--timeout=60s"]);
    done()?;
    let old = pods_of(cluster, "rolled")?;
    ensure!(old.len() == 2);
    for pod in &old {
        wait_listening(cluster, pod, "app")?;
        pod.container("app")?.sleeper.sleep()?;
    }
    kubectl.run(&["rollout", "restart", "deployment/rolled"])?;
    done()?;
    for pod in &old {
        kubectl.wait(&format!("pod/{}", pod.name()), "delete")?;
    }
    let new = pods_of(cluster, "rolled")?;
    ensure!(new.len() == 2, "{new:?}");
    for pod in &new {
        wait_listening(cluster, pod, "app")?;
        pod.container("app")?.sleeper.sleep()?;
        ensure!(count(pod)? == 1 && pod.restarts("app")? == 0);
    }
    Ok(())
}

fn a_job_whose_pod_has_slept_completes(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    let mut manifest = pod(vec![once("app", PORT, 0)]);
    manifest["spec"]["restartPolicy"] = json!("Never");
    let _schedule = Owned::new(cluster, "cronjob/slept");
    kubectl.apply(&json!({
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "slept"},
        "spec": {
            // Never by itself: the test does not wait for a minute to begin.
            "schedule": "0 0 31 2 *",
            "jobTemplate": {"spec": {"template": template(manifest, "slept")}},
        },
    }))?;
    kubectl.run(&["create", "job", "slept", "--from=cronjob/slept"])?;
    let _job = Owned::new(cluster, "job/slept");
    kubectl.wait("job/slept", "jsonpath={.status.ready}=1")?;
    let pods = pods_of(cluster, "slept")?;
    let [pod] = pods.as_slice() else {
        anyhow::bail!("{pods:?}");
    };
    wait_listening(cluster, pod, "app")?;
    pod.container("app")?.sleeper.sleep()?;
    let answer = get(pod, PORT)?;
    ensure!(answer.body == "bye\n", "{answer:?}");
    kubectl.wait("job/slept", "condition=Complete")?;
    let job = kubectl.get(&["job", "slept"])?;
    ensure!(job["status"]["succeeded"] == 1, "{:#}", job["status"]);
    ensure!(job["status"]["failed"].is_null(), "{:#}", job["status"]);
    Ok(())
}
