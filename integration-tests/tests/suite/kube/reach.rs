//! Everything that can reach a sleeping container.

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Client, Cluster, Image, ensure_woken_by, refusal};
use serde_json::{Value, json};

use super::Body;
use super::counter::{PORT, count, goes_on, sleeper, status, woken_for};
use super::manifest::{With, counter, pod, script};
use super::piped::{Piped, forward, wait_listening};

pub(super) const TESTS: &[(&str, Body)] = &[
    ("kube::reach::a_request_wakes_it", a_request_wakes_it),
    ("kube::reach::exec_wakes", exec_wakes),
    ("kube::reach::attach_wakes", attach_wakes),
    ("kube::reach::copying_wakes", copying_wakes),
    ("kube::reach::logs_do_not_wake", logs_do_not_wake),
    ("kube::reach::port_forward_wakes", port_forward_wakes),
    (
        "kube::reach::deleting_runs_the_hook_and_delivers_term",
        deleting_runs_the_hook_and_delivers_term,
    ),
    (
        "kube::reach::a_killed_pod_is_started_again",
        a_killed_pod_is_started_again,
    ),
    (
        "kube::reach::siblings_wake_one_another",
        siblings_wake_one_another,
    ),
    (
        "kube::reach::a_debug_container_wakes_and_keeps_awake_until_it_ends",
        a_debug_container_wakes_and_keeps_awake_until_it_ends,
    ),
];

fn a_request_wakes_it(cluster: &Cluster) -> Result<()> {
    let pod = sleeper(cluster)?;
    let seen = pod.get()?;
    let ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    let conditions = seen["status"]["conditions"].as_array();
    ensure!(
        seen["status"]["phase"] == "Running" && conditions.into_iter().flatten().any(ready),
        "{seen:#}"
    );
    ensure!(status(&pod)?.state == "asleep");
    goes_on(&pod)?;
    ensure!(status(&pod)?.last_wake.cause == "traffic");
    Ok(())
}

fn exec_wakes(cluster: &Cluster) -> Result<()> {
    let pod = sleeper(cluster)?;
    let said = cluster
        .kubectl()
        .run(&["exec", pod.name(), "--", "echo", "hello"])?;
    ensure!(said == "hello\n", "{said:?}");
    woken_for(&pod, "exec")
}

fn attach_wakes(cluster: &Cluster) -> Result<()> {
    let pod = cluster.run(&pod(vec![
        script(
            "app",
            "read line; echo got $line; while :; do sleep 3600; done",
        )
        .with("stdin", json!(true)),
    ]))?;
    pod.container("app")?.sleeper.sleep()?;
    let mut attached = Piped::start(cluster, &["attach", "--stdin", pod.name()])?;
    attached.write("a line\n")?;
    let said = attached.read_line()?;
    ensure!(said == "got a line\n", "{said:?}");
    // What it says is faster than the books.
    let status = pod.container("app")?.sleeper.wait_state("running")?;
    ensure!(status.counters.wakes == 1, "{status:?}");
    Ok(())
}

fn copying_wakes(cluster: &Cluster) -> Result<()> {
    let pod = sleeper(cluster)?;
    let file = cluster.node().folder().join("copied.py");
    let source = format!("{}:/apps/counter.py", pod.name());
    let target = file.to_str().context("a folder's name is not UTF-8")?;
    cluster.kubectl().run(&["cp", &source, target])?;
    let text = std::fs::read_to_string(&file).context("read the copy")?;
    ensure!(text.contains("A counter over HTTP"), "{text:?}");
    woken_for(&pod, "exec")
}

fn logs_do_not_wake(cluster: &Cluster) -> Result<()> {
    let pod = sleeper(cluster)?;
    let logs = cluster.kubectl().run(&["logs", pod.name()])?;
    ensure!(logs.contains("request 1 "), "{logs:?}");
    let mut following = Piped::start(cluster, &["logs", "--follow", pod.name()])?;
    following.wait_for("request 1 ")?;
    ensure!(status(&pod)?.state == "asleep");
    goes_on(&pod)?;
    following.wait_for("request 2 ")
}

fn port_forward_wakes(cluster: &Cluster) -> Result<()> {
    let pod = sleeper(cluster)?;
    let (_forward, address) = forward(cluster, &pod)?;
    let answer = Client::default().get(address, "/")?;
    ensure!(answer.body.contains("\"count\": 2"), "{answer:?}");
    ensure!(status(&pod)?.last_wake.cause == "traffic");
    Ok(())
}

fn deleting_runs_the_hook_and_delivers_term(cluster: &Cluster) -> Result<()> {
    let witness = cluster.node().folder().join("witness");
    std::fs::create_dir_all(&witness).context("create the witness's folder")?;
    let app = script(
        "app",
        "trap 'echo term >> /witness/log; exit 7' TERM; echo up >> /witness/log; echo listening; \
         while :; do sleep 1; done",
    )
    .with(
        "volumeMounts",
        json!([{"name": "witness", "mountPath": "/witness"}]),
    )
    .with(
        "lifecycle",
        json!({"preStop": {"exec": {"command": ["sh", "-c", "echo hook >> /witness/log"]}}}),
    );
    let mut manifest = pod(vec![app]);
    manifest["spec"]["volumes"] = json!([{"name": "witness", "hostPath": {"path": witness}}]);
    let pod = cluster.run(&manifest)?;
    // Without its trap the first process of a namespace does not hear of TERM.
    wait_listening(cluster, &pod, "app")?;
    pod.container("app")?.sleeper.sleep()?;
    pod.delete()?;
    let said = std::fs::read_to_string(witness.join("log")).context("read the witness")?;
    std::fs::remove_dir_all(&witness).context("remove the witness")?;
    ensure!(said == "up\nhook\nterm\n", "{said:?}");
    Ok(())
}

fn a_killed_pod_is_started_again(cluster: &Cluster) -> Result<()> {
    let pod = sleeper(cluster)?;
    let before = pod.container("app")?;
    let shim = cluster.node().shims()?.into_iter().find(|shim| {
        // Containers of a pod share a shim, which is the sandbox's.
        before.sleeper.is_of(&shim.command)
    });
    let shim = shim.context("no shim")?;
    let pid = rustix::process::Pid::from_raw(shim.pid).context("no pid")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).context("kill the shim")?;
    cluster.kubectl().wait(
        &format!("pod/{}", pod.name()),
        "jsonpath={.status.containerStatuses[0].restartCount}=1",
    )?;
    pod.wait_ready()?;
    wait_listening(cluster, &pod, "app")?;
    ensure!(pod.container("app")?.id != before.id);
    ensure!(count(&pod)? == 1);
    Ok(())
}

fn siblings_wake_one_another(cluster: &Cluster) -> Result<()> {
    let pod = cluster.run(&pod(vec![counter("app", PORT), counter("other", 8081)]))?;
    for name in ["app", "other"] {
        wait_listening(cluster, &pod, name)?;
    }
    for (sleeping, awake, port) in [("app", "other", "8080"), ("other", "app", "8081")] {
        let sleeper = pod.container(sleeping)?.sleeper;
        sleeper.sleep()?;
        let fetch = format!(
            "import urllib.request as r; print(r.urlopen('http://127.0.0.1:{port}').read())"
        );
        let said = cluster.kubectl().run(&[
            "exec",
            pod.name(),
            "-c",
            awake,
            "--",
            "python3",
            "-c",
            &fetch,
        ])?;
        ensure!(said.contains("\"count\": 1"), "{said:?}");
        let status = sleeper.status()?;
        ensure_woken_by("traffic", &status)?;
        let status = pod.container(awake)?.sleeper.status()?;
        ensure!(status.state == "running", "{status:?}");
    }
    Ok(())
}

fn a_debug_container_wakes_and_keeps_awake_until_it_ends(cluster: &Cluster) -> Result<()> {
    let pod = sleeper(cluster)?;
    let image = format!("--image={}", Image::Busybox.reference());
    cluster.kubectl().run(&[
        "debug",
        pod.name(),
        &image,
        "--image-pull-policy=Never",
        "--profile=general",
        "--target=app",
        "--container=debug",
        "--attach=false",
        "--",
        "sh",
        "-c",
        "tr '\\0' ' ' < /proc/1/cmdline; echo; until [ -e /end ]; do sleep 0.1; done",
    ])?;
    cluster.kubectl().wait(
        &format!("pod/{}", pod.name()),
        "jsonpath={.status.ephemeralContainerStatuses[0].state.running}",
    )?;
    Piped::start(
        cluster,
        &["logs", "--follow", pod.name(), "--container=debug"],
    )?
    .wait_for("python3 /apps/counter.py")?;
    woken_for(&pod, "exec")?;
    let refused = pod.container("app")?.sleeper.try_sleep();
    let told = refused.err().as_ref().and_then(refusal);
    let told = told.context("it sleeps, or did not answer")?;
    ensure!(told.contains("shares its PID namespace"), "{told}");
    let kubectl = cluster.kubectl();
    kubectl.run(&[
        "exec",
        pod.name(),
        "--container=debug",
        "--",
        "touch",
        "/end",
    ])?;
    kubectl.wait(
        &format!("pod/{}", pod.name()),
        "jsonpath={.status.ephemeralContainerStatuses[0].state.terminated}",
    )?;
    // Nothing tells of its end: it is looked for now and then.
    let sleeper = pod.container("app")?.sleeper;
    sleeper.wait_until("the guest's end", |status| {
        status.awake_reason.name != "shared-pid-namespace"
    })?;
    sleeper.sleep()
}
