//! The manager on real shims, without a cluster: its figures are the shims', and it is needed for nothing.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use podmotion_integration_tests::{
    App, Client, Container, Manager, Member, Network, Node, Runtime, Scrape, Status, Versions,
    status_number,
};

use crate::{Body, light_trial};

const TESTS: &[(&str, Body)] = &[
    ("manager::figures_are_the_shims", figures_are_the_shims),
    (
        "manager::sleeps_and_wakes_go_on_without_it_and_a_new_one_has_all_figures",
        sleeps_and_wakes_go_on_without_it_and_a_new_one_has_all_figures,
    ),
    (
        "manager::nothing_is_left_of_a_pod_that_is_gone",
        nothing_is_left_of_a_pod_that_is_gone,
    ),
    (
        "manager::a_dead_socket_is_counted_and_spoils_nothing",
        a_dead_socket_is_counted_and_spoils_nothing,
    ),
    (
        "manager::is_small_beside_a_crowd_that_sleeps",
        is_small_beside_a_crowd_that_sleeps,
    ),
];

/// Sleeping containers of the crowd; the whole hundred are in `bench`.
const CROWD: usize = 20;
/// What the manager may have in memory, in KiB.
const RSS: u64 = 20 << 10;

pub(crate) fn trials() -> Vec<Trial> {
    let light = |(name, body): &(&str, Body)| light_trial(name, *body, Versions::default());
    TESTS.iter().map(light).collect()
}

fn counter(node: &Node) -> Result<Container> {
    let app = App::counter().annotation("scaledown-duration", "1h");
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    Ok(container)
}

/// A container that can sleep at once: nobody is connected to it, and it has hardly any memory.
fn sleeper(node: &Node) -> Result<Container> {
    let app = App::sh("while :; do sleep 1000; done");
    let app = app.network(Network::Own).ports(&[80]);
    node.run(app.annotation("scaledown-duration", "1h"))
}

fn ask(container: &Container) -> Result<()> {
    let answer = Client::default().get(container.address(8080)?, "/")?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(())
}

fn figures_are_the_shims(node: &Node, runtime: Runtime) -> Result<()> {
    let (used, asleep) = (counter(node)?, counter(node)?);
    let manager = Manager::start(node, &["--no-kubernetes"])?;
    // In a shim that was not there when the manager began.
    let pod = node.pod(runtime)?;
    let member = pod.start(Member::new("web", App::counter()))?;
    for _ in 0..2 {
        used.sleep()?;
        ask(&used)?;
    }
    asleep.sleep()?;
    let wait = |container: &Container| {
        manager.wait("the shim's figures", |seen| {
            let status = container.status()?;
            Ok(same(seen, &status).err())
        })
    };
    wait(&used)?;
    wait(&asleep)?;
    let web = member.sleeper().status()?;
    let running = [
        ("namespace", "test"),
        ("pod", web.pod_name.as_str()),
        ("container", "web"),
        ("state", "running"),
    ];
    manager.wait("the pod's container", |seen| {
        let found = seen.samples("podmotion_container_state", &running);
        Ok((found != [1.0]).then(|| anyhow::anyhow!("{found:?}")))
    })?;
    let seen = manager.scrape()?;
    let used = used.status()?;
    ensure!(
        used.counters.wakes == 2 && used.tallies.first_packet_held.counts.iter().sum::<u64>() == 2
    );
    ensure!(!web.pod_name.is_empty() && seen.value("podmotion_container_state", &running)? == 1.0);
    let sandbox = seen.samples("podmotion_memory_freed_bytes", &[("container", pod.id())]);
    ensure!(
        sandbox.is_empty(),
        "the pod's own container has series: {sandbox:?}"
    );
    ensure!(seen.value("podmotion_shims_unreachable", &[])? == 0.0);
    ensure!(manager.get("/healthz")?.status == 200 && manager.get("/readyz")?.status == 200);
    Ok(())
}

/// That the figures of a container without a pod are those that its shim has told.
fn same(seen: &Scrape, status: &Status) -> Result<()> {
    let container = ("container", status.name.as_str());
    let equal = |name: &str, labels: &[(&str, &str)], shim: u64| -> Result<()> {
        let value = seen.value(name, &[&[container], labels].concat())?;
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let shim = shim as f64;
        ensure!(
            value == shim,
            "{name}{labels:?} is {value}, and the shim says {shim}"
        );
        Ok(())
    };
    let sum = |name: &str, labels: &[(&str, &str)], micros: u64| -> Result<()> {
        let value = seen.value(name, &[&[container], labels].concat())?;
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let shim = micros as f64 / 1e6;
        ensure!(
            (value - shim).abs() < 1e-9,
            "{name}{labels:?} is {value}, and the shim says {shim}"
        );
        Ok(())
    };
    let tallies = &status.tallies;
    ensure!(
        tallies.sleeps.len() == 3 && tallies.wakes.len() == 3,
        "{tallies:?}"
    );
    for tally in &tallies.sleeps {
        let depth = ("depth", tally.depth.as_str());
        for (result, count) in [
            ("success", tally.succeeded),
            ("aborted", tally.aborted),
            ("failed", tally.failed),
        ] {
            equal(
                "podmotion_checkpoints_total",
                &[depth, ("result", result)],
                count,
            )?;
        }
        let name = "podmotion_checkpoint_duration_seconds";
        equal(&format!("{name}_count"), &[depth], tally.succeeded)?;
        sum(&format!("{name}_sum"), &[depth], tally.took.sum_us)?;
        equal(
            &format!("{name}_bucket"),
            &[depth, ("le", "+Inf")],
            tally.succeeded,
        )?;
    }
    for tally in &tallies.wakes {
        let depth = ("depth", tally.depth.as_str());
        let name = "podmotion_restore_duration_seconds";
        equal(&format!("{name}_count"), &[depth], tally.succeeded)?;
        sum(&format!("{name}_sum"), &[depth], tally.took.sum_us)?;
        if tally.depth == "light" {
            let labels = [("kind", "light"), ("result", "success")];
            equal("podmotion_restores_total", &labels, tally.succeeded)?;
        }
    }
    let held = tallies.first_packet_held.counts.iter().sum();
    equal("podmotion_first_byte_hold_seconds_count", &[], held)?;
    equal(
        "podmotion_memory_freed_bytes",
        &[],
        status.memory_freed_bytes,
    )?;
    equal("podmotion_image_bytes", &[], status.image_bytes)?;
    equal("podmotion_container_state", &[("state", &status.state)], 1)?;
    let states = seen.samples("podmotion_container_state", &[container]);
    ensure!(
        states.iter().sum::<f64>() == 1.0 && states.len() == 7,
        "{states:?}"
    );
    match status.awake_reason.as_ref() {
        Some(reason) => equal("podmotion_awake_reason", &[("reason", &reason.name)], 1),
        None => {
            let reasons = seen.samples("podmotion_awake_reason", &[container]);
            ensure!(reasons.is_empty(), "{reasons:?}");
            Ok(())
        }
    }
}

fn sleeps_and_wakes_go_on_without_it_and_a_new_one_has_all_figures(
    node: &Node,
    _: Runtime,
) -> Result<()> {
    let container = counter(node)?;
    let manager = Manager::start(node, &["--no-kubernetes"])?;
    container.sleep()?;
    let wait = |manager: &Manager| {
        manager.wait("the shim's figures", |seen| {
            Ok(same(seen, &container.status()?).err())
        })
    };
    wait(&manager)?;
    manager.kill()?;
    ask(&container)?;
    container.sleep()?;
    ask(&container)?;
    let status = container.status()?;
    ensure!(
        status.counters.sleeps == 2 && status.counters.wakes == 2,
        "{status:?}"
    );
    let manager = Manager::start(node, &["--no-kubernetes"])?;
    wait(&manager)
}

fn nothing_is_left_of_a_pod_that_is_gone(node: &Node, runtime: Runtime) -> Result<()> {
    let manager = Manager::start(node, &["--no-kubernetes"])?;
    let pod = node.pod(runtime)?;
    let member = pod.start(Member::new("web", App::counter()))?;
    let name = member.sleeper().status()?.pod_name;
    manager.wait("the pod", |seen| {
        Ok((!seen.mentions(&name)).then(|| anyhow::anyhow!("not there")))
    })?;
    pod.stop()?;
    drop(pod);
    manager.wait("no series", |seen| {
        Ok(seen
            .mentions(&name)
            .then(|| anyhow::anyhow!("{name} still has series")))
    })
}

fn a_dead_socket_is_counted_and_spoils_nothing(node: &Node, _: Runtime) -> Result<()> {
    let container = sleeper(node)?;
    let manager = Manager::start(node, &["--no-kubernetes"])?;
    let dead = Path::new("/run/podmotion/shims/dead.sock");
    drop(UnixListener::bind(dead).with_context(|| format!("make {}", dead.display()))?);
    let unreachable = |wanted: f64| {
        manager.wait("the count of dead shims", |seen| {
            let value = seen.value("podmotion_shims_unreachable", &[])?;
            Ok((value != wanted).then(|| anyhow::anyhow!("{value}, not {wanted}")))
        })
    };
    unreachable(1.0)?;
    container.sleep()?;
    manager.wait("the sleep", |seen| {
        Ok(same(seen, &container.status()?).err())
    })?;
    fs::remove_file(dead)?;
    unreachable(0.0)
}

fn is_small_beside_a_crowd_that_sleeps(node: &Node, _: Runtime) -> Result<()> {
    let crowd: Vec<Container> = (0..CROWD).map(|_| sleeper(node)).collect::<Result<_>>()?;
    let manager = Manager::start(node, &["--no-kubernetes"])?;
    for container in &crowd {
        container.sleep()?;
    }
    for container in &crowd {
        manager.wait("all figures", |seen| {
            Ok(same(seen, &container.status()?).err())
        })?;
    }
    let rss = status_number(manager.pid()?, "VmRSS")?;
    eprintln!("the manager has {rss} KiB in memory beside {CROWD} sleeping containers");
    ensure!(rss <= RSS, "{rss} KiB in memory");
    let threads = status_number(manager.pid()?, "Threads")?;
    ensure!(threads == 1, "{threads} threads");
    Ok(())
}
