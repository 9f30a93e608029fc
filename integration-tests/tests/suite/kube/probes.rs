//! Probes and hooks of a real kubelet, while a container sleeps and on its way there and back.
//!
//! That a kubelet has probed is an event here: the shim counts what it has answered.

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{
    Client, Cluster, KubePod, Sleeper, Status, ensure_woken_by, soak,
};
use serde_json::{Value, json};

use super::Body;
use super::manifest::{With, counter, pod, python};

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "kube::probes::they_neither_wake_nor_fail",
        they_neither_wake_nor_fail,
    ),
    (
        "kube::probes::of_a_port_that_does_not_wake",
        of_a_port_that_does_not_wake,
    ),
    (
        "kube::probes::of_a_container_that_was_stopped",
        of_a_container_that_was_stopped,
    ),
    (
        "kube::probes::one_that_fails_keeps_awake",
        one_that_fails_keeps_awake,
    ),
    (
        "kube::probes::one_that_nobody_knew_ends_no_sleep_by_hand",
        one_that_nobody_knew_ends_no_sleep_by_hand,
    ),
    (
        "kube::probes::another_path_is_asked_once",
        another_path_is_asked_once,
    ),
    (
        "kube::probes::an_exec_wakes_for_itself",
        an_exec_wakes_for_itself,
    ),
    (
        "kube::probes::grpc_without_annotation_wakes_for_itself",
        grpc_without_annotation_wakes_for_itself,
    ),
    (
        "kube::probes::a_hook_reaches_the_application",
        a_hook_reaches_the_application,
    ),
    (
        "kube::probes::a_kubelet_in_a_pod_is_a_client",
        a_kubelet_in_a_pod_is_a_client,
    ),
    (
        "kube::probes::many_in_a_row_while_it_sleeps_and_wakes",
        many_in_a_row_while_it_sleeps_and_wakes,
    ),
];

const PROGRAM: &str = include_str!("probed.py");
/// A pod whose containers sleep after a second. They ask for some of a processor: of one that asks for none Kubernetes
/// makes the weight so small (2 of 1024) that Linux gives it nothing at all for seconds where others compute, and then its
/// probes fail, whether it ever slept or not.
fn sleepy(containers: Vec<Value>) -> Value {
    let resources = json!({"requests": {"cpu": "100m"}});
    let containers = containers.into_iter();
    let mut pod = pod(containers
        .map(|container| container.with("resources", resources.clone()))
        .collect());
    pod["metadata"]["annotations"] = json!({
        "komodor.com/podmotion-scaledown-duration": "1s",
    });
    pod
}

fn annotated(mut pod: Value, name: &str, value: &str) -> Value {
    pod["metadata"]["annotations"][format!("komodor.com/podmotion-{name}")] = json!(value);
    pod
}

/// As hard as a user can make them: every second, and a second to answer.
fn probe(action: &Value) -> Value {
    let mut probe = json!({"periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1});
    for (key, value) in action.as_object().into_iter().flatten() {
        probe[key] = value.clone();
    }
    probe
}

/// Of an application that starts on a busy machine.
fn startup(action: &Value) -> Value {
    let probe = probe(action);
    probe.with("failureThreshold", json!(100))
}

fn http(path: &str, port: u16) -> Value {
    json!({"httpGet": {"path": path, "port": port}})
}

fn https(path: &str, port: u16) -> Value {
    json!({"httpGet": {"path": path, "port": port, "scheme": "HTTPS"}})
}

fn tcp(port: u16) -> Value {
    json!({"tcpSocket": {"port": port}})
}

/// The application over HTTP alone.
fn app(environment: &[(&str, &str)]) -> Value {
    let environment = [&[("PORT", "8080")], environment].concat();
    python("app", PROGRAM, &environment)
}

/// The sleep of the pod's container.
fn sleeper(pod: &KubePod<'_>) -> Result<Sleeper> {
    Ok(pod.container("app")?.sleeper)
}

fn count(pod: &KubePod<'_>, port: u16) -> Result<u64> {
    let answer = Client::default().get(pod.address(port)?, "/count")?;
    answer.body.parse().context("read the number")
}

fn set(pod: &KubePod<'_>, path: &str, status: u16) -> Result<()> {
    let answer = Client::default().get(
        pod.address(8080)?,
        &format!("/set?path={path}&status={status}"),
    )?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

fn is_ready(pod: &KubePod<'_>) -> Result<bool> {
    let seen = pod.get()?;
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    let conditions = seen["status"]["conditions"].as_array();
    Ok(conditions.into_iter().flatten().any(ready))
}

/// How many probes of a pod the kubelet says have ended so, but for those of its start.
fn probes(cluster: &Cluster, pod: &KubePod<'_>, result: &str) -> Result<u64> {
    let metrics =
        cluster
            .kubectl()
            .run(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics/probes"])?;
    let of_pod = format!("pod=\"{}\"", pod.name());
    let with_result = format!("result=\"{result}\"");
    let mut total = 0;
    for line in metrics.lines().filter(|line| {
        line.starts_with("prober_probe_total{")
            && line.contains(&of_pod)
            && line.contains(&with_result)
            && !line.contains("Startup")
    }) {
        let number = line.rsplit(' ').next().context("an empty line")?;
        total += number.parse::<f64>().with_context(|| line.to_owned())? as u64;
    }
    Ok(total)
}

/// Its only probe has been answered for it. Where the first one passed in the moment in which it fell asleep, the second has
/// woken it to learn its answer.
fn is_known(sleeper: &Sleeper) -> Result<()> {
    let answered = |status: &Status| status.probes.answered > 0;
    sleeper.wait_until("a probe answered", answered).map(drop)
}

/// Sleeps once it could, and the kubelet's probes are answered for it until there were `more`.
fn sleeps_through(sleeper: &Sleeper, more: u64) -> Result<Status> {
    let before = sleeper.wait_state("asleep")?;
    let after = sleeper.wait_until(&format!("{more} probes answered"), |status| {
        status.probes.answered >= before.probes.answered + more || status.state != "asleep"
    })?;
    ensure!(
        after.state == "asleep"
            && after.counters == before.counters
            && after.probes.proxied == before.probes.proxied,
        "{before:?}\n{after:?}"
    );
    Ok(after)
}

fn certificate() -> Result<String> {
    let own = rcgen::generate_simple_self_signed(["app".to_owned()])?;
    Ok(own.cert.pem() + &own.signing_key.serialize_pem())
}

fn they_neither_wake_nor_fail(cluster: &Cluster) -> Result<()> {
    let certificate = certificate()?;
    let plain = app(&[])
        .with("startupProbe", startup(&http("/start", 8080)))
        .with("livenessProbe", probe(&http("/live", 8080)))
        .with("readinessProbe", probe(&http("/ready", 8080)));
    let secure = [("TLS_PORT", "8443"), ("CERTIFICATE", certificate.as_str())];
    let secure = python("secure", PROGRAM, &secure)
        .with("startupProbe", startup(&tcp(8443)))
        .with("livenessProbe", probe(&tcp(8443)))
        .with("readinessProbe", probe(&https("/ready", 8443)));
    let grpc = python("grpc", PROGRAM, &[("GRPC_PORT", "9090")])
        .with("startupProbe", startup(&tcp(9090)))
        .with("livenessProbe", probe(&json!({"grpc": {"port": 9090}})))
        .with(
            "readinessProbe",
            probe(&json!({"grpc": {"port": 9090, "service": "app"}})),
        );
    let manifest = annotated(sleepy(vec![plain, secure, grpc]), "grpc-probes", "true");
    let pod = cluster.run(&manifest)?;
    let names = ["app", "secure", "grpc"];
    let sleepers = names.map(|name| pod.container(name).map(|one| one.sleeper));
    let mut kinds = Vec::new();
    let failed = probes(cluster, &pod, "failed")?;
    for sleeper in sleepers {
        let sleeper = sleeper?;
        // What began when it slept already has woken it once.
        sleeper.wait_until("ten probes answered", |status| status.probes.answered >= 10)?;
        let status = sleeps_through(&sleeper, 10)?;
        let last = status.probes.last.first().context("no probe has passed")?;
        ensure!(last.passed, "{status:?}");
        kinds.push(last.kind.clone());
    }
    ensure!(kinds[0] == "http" && kinds[2] == "grpc", "{kinds:?}");
    ensure!(is_ready(&pod)?);
    ensure!(probes(cluster, &pod, "failed")? == failed);
    for name in names {
        ensure!(pod.restarts(name)? == 0);
    }
    // What somebody else wants reaches the application, and after that it is asked again.
    let sleeper = sleeper(&pod)?;
    // Before it wakes: it may sleep again by the time that it is looked at.
    let proxied = sleeper.status()?.probes.proxied;
    ensure!(count(&pod, 8080)? == 1);
    let status = sleeps_through(&sleeper, 3)?;
    ensure!(
        status.last_wake.cause == "traffic" && status.probes.proxied > proxied,
        "{status:?}"
    );
    ensure!(probes(cluster, &pod, "failed")? == failed);
    Ok(())
}

fn of_a_port_that_does_not_wake(cluster: &Cluster) -> Result<()> {
    let certificate = certificate()?;
    let both = [("TLS_PORT", "8443"), ("CERTIFICATE", certificate.as_str())];
    let app = app(&both)
        .with("startupProbe", startup(&http("/start", 8080)))
        .with("livenessProbe", probe(&http("/live", 8080)))
        .with("readinessProbe", probe(&https("/ready", 8443)));
    let pod = cluster.run(&annotated(sleepy(vec![app]), "ports-map", "app=8080"))?;
    let failed = probes(cluster, &pod, "failed")?;
    sleeps_through(&sleeper(&pod)?, 6)?;
    ensure!(is_ready(&pod)? && pod.restarts("app")? == 0);
    ensure!(probes(cluster, &pod, "failed")? == failed);
    ensure!(count(&pod, 8080)? == 1);
    Ok(())
}

fn of_a_container_that_was_stopped(cluster: &Cluster) -> Result<()> {
    // One that is not known yet starts it, which takes longer than a second on a busy machine.
    let probe = |path| probe(&http(path, 8080)).with("timeoutSeconds", json!(10));
    let app = app(&[])
        .with("startupProbe", startup(&http("/start", 8080)))
        .with("livenessProbe", probe("/live"))
        .with("readinessProbe", probe("/ready"));
    let manifest = annotated(sleepy(vec![app]), "disable-checkpointing", "true");
    let pod = cluster.run(&manifest)?;
    let failed = probes(cluster, &pod, "failed")?;
    for _ in 0..3 {
        // The first of each kind may come when it sleeps already, and starts it.
        let before = sleeper(&pod)?.status()?.probes.answered;
        let asleep = sleeper(&pod)?.wait_until("six probes answered", |status| {
            status.state == "asleep" && status.probes.answered >= before + 6
        })?;
        ensure!(asleep.depth == "cold", "{asleep:?}");
        // It starts anew, and whoever asks waits for it, probes too.
        ensure!(count(&pod, 8080)? == 1);
    }
    ensure!(is_ready(&pod)? && pod.restarts("app")? == 0);
    ensure!(probes(cluster, &pod, "failed")? == failed);
    Ok(())
}

fn one_that_fails_keeps_awake(cluster: &Cluster) -> Result<()> {
    let app = app(&[("UNREADY", "/ready=503")])
        .with("livenessProbe", startup(&http("/live", 8080)))
        .with("readinessProbe", probe(&http("/ready", 8080)));
    let pod = cluster.create(&sleepy(vec![app]))?;
    cluster.kubectl().wait(
        &format!("pod/{}", pod.name()),
        "jsonpath={.status.containerStatuses[0].state.running}",
    )?;
    let sleeper = sleeper(&pod)?;
    let failing = |status: &Status| {
        status.awake_reason.name == "probe-pending" && status.awake_reason.detail.contains("fails")
    };
    let asked = sleeper.wait_until("a probe that fails", failing)?;
    ensure!(asked.awake_reason.since_unix_ms > 0, "{asked:?}");
    // It goes on being asked, and the kubelet has the application's answer.
    sleeper.wait_until("five more of them", |after| {
        after.probes.proxied >= asked.probes.proxied + 5
    })?;
    // A look while the application answers a probe sees that request instead.
    let status = sleeper.wait_until("a probe that still fails", failing)?;
    ensure!(
        status.counters == asked.counters && !is_ready(&pod)?,
        "{status:?}"
    );
    let refused = loop {
        let refused = sleeper.try_sleep().err().context("it sleeps")?;
        let refused = format!("{refused:#}");
        if !refused.contains("has no answer yet") {
            break refused;
        }
    };
    ensure!(refused.contains("a probe of port 8080 fails"), "{refused}");
    set(&pod, "/ready", 200)?;
    pod.wait_ready()?;
    sleeps_through(&sleeper, 3)?;
    ensure!(is_ready(&pod)? && pod.restarts("app")? == 0);
    // It has another opinion once it has been used: not what it said before counts.
    set(&pod, "/ready", 503)?;
    sleeper.wait_until("a probe that fails", failing)?;
    cluster
        .kubectl()
        .wait(&format!("pod/{}", pod.name()), "condition=Ready=False")
}

fn another_path_is_asked_once(cluster: &Cluster) -> Result<()> {
    // The second probe begins when the container sleeps already, and a wake can take longer than a second on
    // a busy machine.
    let late = probe(&http("/late", 8080))
        .with("initialDelaySeconds", json!(8))
        .with("timeoutSeconds", json!(10));
    let app = app(&[])
        .with("readinessProbe", probe(&http("/ready", 8080)))
        .with("livenessProbe", late);
    let pod = cluster.run(&sleepy(vec![app]))?;
    let sleeper = sleeper(&pod)?;
    sleeper.wait_until("the late probe", |status| {
        let mut last = status.probes.last.iter();
        last.any(|last| last.subject == "GET /late" && last.passed)
    })?;
    sleeps_through(&sleeper, 6)?;
    let logs = cluster.kubectl().run(&["logs", pod.name()])?;
    let asked = logs.contains("/late 200 kube-probe/");
    ensure!(asked && pod.restarts("app")? == 0, "{logs}");
    Ok(())
}

fn one_that_nobody_knew_ends_no_sleep_by_hand(cluster: &Cluster) -> Result<()> {
    let late = probe(&http("/late", 8080))
        .with("initialDelaySeconds", json!(20))
        .with("timeoutSeconds", json!(10));
    let app = app(&[])
        .with("readinessProbe", probe(&http("/ready", 8080)))
        .with("livenessProbe", late);
    let manifest = annotated(sleepy(vec![app]), "scaledown-duration", "1h");
    let pod = cluster.run(&manifest)?;
    let sleeper = sleeper(&pod)?;
    sleeper.sleep()?;
    let status = sleeper.wait_until("a wake and a sleep", |status| {
        status.counters.wakes >= 1 && status.state == "asleep"
    })?;
    ensure_woken_by("probe", &status)?;
    sleeps_through(&sleeper, 6)?;
    // A request ends it: the idle time is what the pod says.
    ensure!(count(&pod, 8080)? == 1);
    let status = sleeper.wait_reason("starting")?;
    ensure_woken_by("traffic", &status)?;
    ensure!(pod.restarts("app")? == 0);
    Ok(())
}

fn an_exec_wakes_for_itself(cluster: &Cluster) -> Result<()> {
    let exec = json!({"exec": {"command": ["true"]}, "periodSeconds": 5, "timeoutSeconds": 30});
    let app = app(&[])
        .with("livenessProbe", exec)
        .with("readinessProbe", startup(&tcp(8080)));
    // Longer than the time between two: each of them would begin it anew.
    let manifest = annotated(sleepy(vec![app]), "scaledown-duration", "8s");
    let pod = cluster.run(&manifest)?;
    let sleeper = sleeper(&pod)?;
    let status = sleeper.wait_until("two wakes and a sleep", |status| {
        status.counters.wakes >= 2 && status.state == "asleep"
    })?;
    ensure_woken_by("exec", &status)?;
    ensure!(pod.restarts("app")? == 0);
    Ok(())
}

fn grpc_without_annotation_wakes_for_itself(cluster: &Cluster) -> Result<()> {
    let check = json!({
        "grpc": {"port": 9090}, "periodSeconds": 5, "timeoutSeconds": 30, "failureThreshold": 1,
    });
    let app = python("app", PROGRAM, &[("GRPC_PORT", "9090")])
        .with("startupProbe", startup(&tcp(9090)))
        .with("livenessProbe", check);
    let pod = cluster.run(&sleepy(vec![app]))?;
    let sleeper = sleeper(&pod)?;
    let status = sleeper.wait_until("two wakes and a sleep", |status| {
        status.counters.wakes >= 2 && status.state == "asleep"
    })?;
    ensure_woken_by("probe", &status)?;
    ensure!(pod.restarts("app")? == 0 && probes(cluster, &pod, "failed")? == 0);
    Ok(())
}

fn a_hook_reaches_the_application(cluster: &Cluster) -> Result<()> {
    let witness = cluster.node().folder().join("witness");
    std::fs::create_dir_all(&witness).context("create the witness's folder")?;
    let hook = json!({"preStop": {"httpGet": {"path": "/stop", "port": 8080}}});
    let app = app(&[("WITNESS", "/witness/log")])
        .with("readinessProbe", startup(&http("/ready", 8080)))
        .with("lifecycle", hook)
        .with(
            "volumeMounts",
            json!([{"name": "witness", "mountPath": "/witness"}]),
        );
    let mut manifest = sleepy(vec![app]);
    manifest["spec"]["volumes"] = json!([{"name": "witness", "hostPath": {"path": witness}}]);
    let pod = cluster.run(&manifest)?;
    let sleeper = sleeper(&pod)?;
    is_known(&sleeper)?;
    sleeps_through(&sleeper, 2)?;
    pod.delete()?;
    let said = std::fs::read_to_string(witness.join("log")).context("read the witness")?;
    std::fs::remove_dir_all(&witness).context("remove the witness")?;
    ensure!(said.contains("/stop 200 kube-lifecycle/"), "{said:?}");
    Ok(())
}

fn a_kubelet_in_a_pod_is_a_client(cluster: &Cluster) -> Result<()> {
    let ready = startup(&http("/ready", 8080));
    let pod = cluster.run(&sleepy(vec![app(&[]).with("readinessProbe", ready)]))?;
    let sleeper = sleeper(&pod)?;
    is_known(&sleeper)?;
    let before = sleeps_through(&sleeper, 2)?;
    // Awake for as long as it likes.
    let other = cluster.run(&self::pod(vec![counter("app", 8080)]))?;
    let url = format!("http://{}/count", pod.address(8080)?);
    let program = format!(
        "import ctypes, urllib.request as r\n\
         ctypes.CDLL(None).prctl(15, b'kubelet')\n\
         assert open('/proc/self/comm').read() == 'kubelet\\n'\n\
         q = r.Request('{url}', headers={{'User-Agent': 'kube-probe/1.34'}})\n\
         print(r.urlopen(q).read().decode())"
    );
    let said = cluster
        .kubectl()
        .run(&["exec", other.name(), "--", "python3", "-c", &program])?;
    ensure!(said == "1\n", "{said:?}");
    let status = sleeper.wait_until("a wake", |status| {
        status.counters.wakes > before.counters.wakes
    })?;
    ensure_woken_by("traffic", &status)?;
    Ok(())
}

fn many_in_a_row_while_it_sleeps_and_wakes(cluster: &Cluster) -> Result<()> {
    const CONTAINERS: u16 = 6;
    let enough = if soak() { 10_000 } else { 1_000 };
    let names: Vec<_> = (0..CONTAINERS)
        .map(|number| format!("app-{number}"))
        .collect();
    let containers = names.iter().zip(8080_u16..).map(|(name, port)| {
        python(name, PROGRAM, &[("PORT", &port.to_string())])
            .with("startupProbe", startup(&http("/start", port)))
            // A failure is seen in the kubelet's own numbers; it need not end the container.
            .with("livenessProbe", startup(&tcp(port)))
            .with("readinessProbe", startup(&http("/ready", port)))
    });
    let pod = cluster.run(&sleepy(containers.collect()))?;
    let failed = probes(cluster, &pod, "failed")?;
    let begun = probes(cluster, &pod, "successful")?;
    let mut rounds = 0;
    while probes(cluster, &pod, "successful")? < begun + enough {
        for (name, port) in names.iter().zip(8080..) {
            pod.container(name)?.sleeper.wait_state("asleep")?;
            count(&pod, port)?;
        }
        rounds += 1;
        let now = probes(cluster, &pod, "failed")?;
        ensure!(
            now == failed,
            "{} probes failed in round {rounds}",
            now - failed
        );
    }
    for (name, port) in names.iter().zip(8080..) {
        ensure!(count(&pod, port)? == rounds + 1);
        ensure!(pod.restarts(name)? == 0);
    }
    Ok(())
}
