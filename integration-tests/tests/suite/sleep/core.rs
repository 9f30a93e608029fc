//! A container goes on where it was, and everything containerd asks of it works from asleep.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{
    App, Census, Container, Depth, Exec, Member, Network, Node, PATIENCE, Runtime, State,
    ensure_woken_by, fds, memory_limit, own_processes, rss_anon_kib, wait_gone,
};

use super::{counter, visit, wait_listening};
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "sleep::core::a_request_wakes_it_where_it_was",
        a_request_wakes_it_where_it_was,
    ),
    ("sleep::core::hundred_cycles", cycles::<10, 100>),
    (
        "sleep::core::deleted_at_once_after_its_start",
        deleted_at_once_after_its_start,
    ),
    ("sleep::core::exec_wakes", exec_wakes),
    ("sleep::core::term_wakes_and_is_delivered", term_wakes),
    ("sleep::core::term_discards_where_told", term_discards),
    ("sleep::core::kill_while_asleep", kill_while_asleep),
    ("sleep::core::pause_and_resume_wake", pause_and_resume_wake),
    ("sleep::core::metrics_do_not_wake", metrics_do_not_wake),
    ("sleep::core::update_wakes", update_wakes),
    ("sleep::core::pod_of_two", pod_of_two),
    (
        "sleep::core::deleted_pod_leaves_nothing",
        deleted_pod_leaves_nothing,
    ),
];

fn a_request_wakes_it_where_it_was(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(counter().mem_mb(20))?;
    container.stdout()?.wait_for("listening")?;
    let address = container.address(8080)?;
    ensure!(visit(address)? == 1);
    let pid = container.pid()?.try_into()?;
    container.sleep()?;
    match node.depth() {
        Depth::Deep => wait_gone(pid, PATIENCE)?,
        // 20 MiB and what the interpreter has; what stays is about a page of each mapping.
        Depth::Light => ensure!(rss_anon_kib(pid)? < 3 << 10, "memory stays"),
    }
    let asleep = container.status()?;
    ensure!(
        asleep.state == "asleep" && asleep.depth == node.depth().to_string(),
        "{asleep:?}"
    );
    ensure!(
        asleep.ports == [8080] && asleep.counters.sleeps == 1,
        "{asleep:?}"
    );
    ensure!(asleep.memory_freed_bytes > 20 << 20, "{asleep:?}");
    ensure!(asleep.image_bytes > 20 << 20, "{asleep:?}");
    ensure!(
        container.state()? == State::Running,
        "containerd sees the sleep"
    );
    // It is told of the process that was: a containerd that starts again removes a task without any.
    let pid = container.pid()?;
    ensure!(container.pids()? == [pid]);
    let exists = Path::new(&format!("/proc/{pid}")).exists();
    ensure!(exists == (node.depth() == Depth::Light));

    ensure!(visit(address)? == 2);
    let awake = container
        .sleeper()
        .wait_until("returned packets", |status| {
            status.state == "running" && status.last_wake.packets > 0
        })?;
    ensure_woken_by("traffic", &awake)?;
    ensure!(awake.last_wake.first_packet_held_us > 0, "{awake:?}");
    ensure!(
        awake.memory_freed_bytes == 0 && awake.image_bytes == 0,
        "{awake:?}"
    );
    let events = node.events().of(container.id());
    ensure!(
        !events.iter().any(|event| event.topic == "/tasks/exit"),
        "containerd was told of an exit: {events:?}"
    );
    Ok(())
}

/// What a shim and its container have, but for pids.
#[derive(Debug, PartialEq, Eq)]
struct Possessions {
    descriptors: BTreeMap<String, usize>,
    processes: Vec<String>,
    zombies: usize,
}

impl Possessions {
    fn of(shim: i32) -> Result<Self> {
        let mut processes: Vec<_> = own_processes()?
            .into_iter()
            .map(|one| one.command)
            .collect();
        processes.sort();
        Ok(Self {
            descriptors: fds(shim)?,
            processes,
            zombies: zombies(shim)?,
        })
    }
}

/// Children of a process that have ended and that it has not looked at.
fn zombies(parent: i32) -> Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir("/proc").context("list processes")?.flatten() {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let state = fields.next();
        if state == Some("Z") && fields.next() == Some(&parent.to_string()) {
            found += 1;
        }
    }
    Ok(found)
}

/// After the `FIRST` cycles, which fill caches, `MORE` take nothing and leave nothing.
pub(super) fn cycles<const FIRST: u64, const MORE: u64>(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(counter().mem_mb(2))?;
    container.stdout()?.wait_for("listening")?;
    let address = container.address(8080)?;
    let shim = node.shim_of(container.id())?.pid;
    let cycle = |number| -> Result<()> {
        container.sleep()?;
        let answer = visit(address)?;
        ensure!(answer == number, "request {number} was counted as {answer}");
        Ok(())
    };
    for number in 1..=FIRST {
        cycle(number)?;
    }
    settle(&container)?;
    let (before, rss) = (Census::take()?, rss_anon_kib(shim)?);
    let possessions = Possessions::of(shim)?;
    for number in FIRST + 1..=FIRST + MORE {
        cycle(number)?;
    }
    settle(&container)?;
    // The container's process has another pid; the comparison after this one is without pids.
    Census::wait_as_before_but(&before, &["process "])?;
    let now = Possessions::of(shim)?;
    ensure!(
        now == possessions,
        "before: {possessions:#?}\nafter: {now:#?}"
    );
    let grown = rss_anon_kib(shim)?.saturating_sub(rss);
    ensure!(
        grown < 1024,
        "the shim has grown by {grown} KiB in {MORE} cycles, from {rss}"
    );
    let status = container.status()?;
    ensure!(
        status.counters.sleeps == FIRST + MORE && status.counters.wakes == FIRST + MORE,
        "{status:?}"
    );
    Ok(())
}

/// Waits until nothing is under way for it.
fn settle(container: &Container) -> Result<()> {
    container.sleeper().wait_until("rest", |status| {
        status.state == "running" && status.awake_reason.is_some() && status.last_wake.packets > 0
    })?;
    Ok(())
}

/// Its shim is still preparing for its sleep when it ends: it must let go of the container's pipes.
fn deleted_at_once_after_its_start(node: &Node, _: Runtime) -> Result<()> {
    for _ in 0..5 {
        let container = node.run(catcher())?;
        container.kill(libc::SIGKILL)?;
        ensure!(container.wait()?.status == 128 + 9);
        // Gives up on pipes that somebody keeps open after ten seconds.
        let started = Instant::now();
        container.delete_task()?;
        container.stdout()?.wait_end()?;
        let took = started.elapsed();
        ensure!(took < Duration::from_secs(10), "deleted after {took:?}");
    }
    Ok(())
}

fn exec_wakes(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(counter())?;
    container.stdout()?.wait_for("listening")?;
    container.sleep()?;
    let (exit, output) = container.exec_output(&Exec::sh("echo from exec; exit 3"))?;
    ensure!((exit.status, output.as_str()) == (3, "from exec\n"));
    let status = container.status()?;
    ensure_woken_by("exec", &status)?;
    ensure!(visit(container.address(8080)?)? == 1);
    Ok(())
}

/// Sleeps without a port to wake it by, and exits with 5 on TERM.
fn catcher() -> App {
    App::sh("trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 1000 & wait; done")
        .network(Network::Own)
        .ports(&[8080])
}

fn term_wakes(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(catcher())?;
    container.stdout()?.wait_for("ready")?;
    container.sleep()?;
    container.kill(libc::SIGTERM)?;
    ensure!(container.wait()?.status == 5, "TERM was not delivered");
    container.stdout()?.wait_for("caught")?;
    ensure!(container.delete_task()?.status == 5);
    Ok(())
}

fn term_discards(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(catcher().annotation("terminate-asleep", "discard"))?;
    container.stdout()?.wait_for("ready")?;
    container.sleep()?;
    container.kill(libc::SIGTERM)?;
    ensure!(container.wait()?.status == 128 + 15);
    ensure!(
        container.status()?.counters.wakes == 0,
        "it was woken to be ended"
    );
    ensure!(container.delete_task()?.status == 128 + 15);
    ensure!(container.stdout()?.wait_end()? == b"ready\n");
    Ok(())
}

fn kill_while_asleep(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(counter())?;
    container.stdout()?.wait_for("listening")?;
    container.sleep()?;
    let images = || -> Result<bool> {
        let all = fs::read_dir("/var/lib/podmotion/checkpoints/").context("list images")?;
        let own = |name: &str| name.split('.').next() == Some(container.id());
        Ok(all
            .flatten()
            .any(|one| one.file_name().to_str().is_some_and(own)))
    };
    ensure!(images()?);
    ensure!(container.delete_task().is_err(), "deleted though it runs");
    container.kill(libc::SIGKILL)?;
    ensure!(container.wait()?.status == 128 + 9);
    ensure!(container.state()? == State::Stopped);
    node.events().wait_for_exit(container.id())?;
    ensure!(container.delete_task()?.status == 128 + 9);
    ensure!(!images()?);
    ensure!(
        container
            .stdout()?
            .wait_end()?
            .ends_with(b"listening on 8080\n")
    );
    Ok(())
}

fn pause_and_resume_wake(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(counter().env("LOG_EVERY_MS", "10"))?;
    container.stdout()?.wait_for("tick 3\n")?;
    container.sleep()?;
    container.pause()?;
    ensure!(container.state()? == State::Paused);
    let status = container.sleeper().wait_reason("paused")?;
    ensure_woken_by("pause", &status)?;
    container.resume()?;
    ensure!(container.state()? == State::Running);
    let so_far = container.stdout()?.bytes().len();
    container.stdout()?.wait_for_bytes(so_far + 50)?;
    container.sleep()?;
    ensure!(visit(container.address(8080)?)? == 1);
    Ok(())
}

fn metrics_do_not_wake(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(counter().mem_mb(50))?;
    container.stdout()?.wait_for("listening")?;
    let (url, awake) = container.metrics()?;
    container.sleep()?;
    let (same, asleep) = container.metrics()?;
    ensure!(url == same && !awake.is_empty() && !asleep.is_empty());
    ensure!(container.state()? == State::Running);
    let status = container.status()?;
    ensure!(
        status.state == "asleep" && status.counters.wakes == 0,
        "{status:?}"
    );
    Ok(())
}

fn update_wakes(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(counter().memory_limit(128 << 20))?;
    container.stdout()?.wait_for("listening")?;
    container.sleep()?;
    container.update_memory(96 << 20)?;
    let status = container.status()?;
    ensure_woken_by("update", &status)?;
    let limit = memory_limit(&container.cgroup()?)?;
    ensure!(limit == 96 << 20, "{limit}");
    container.sleep()?;
    ensure!(visit(container.address(8080)?)? == 1);
    Ok(())
}

fn pod_of_two(node: &Node, _: Runtime) -> Result<()> {
    let commands = || -> Result<BTreeSet<_>> {
        let shims = node.shims()?.into_iter();
        Ok(shims.map(|shim| shim.command).collect())
    };
    // Those of earlier tests may be about to end.
    let before = commands()?;
    let pod = node.pod(Runtime::Podmotion)?;
    let app = || App::new(["python3", "/apps/counter.py"]).annotation("scaledown-duration", "1h");
    let first = pod.start(Member::new("first", app()))?;
    let second = pod.start(Member::new("second", app().env("PORT", "8081")))?;
    let new = &commands()? - &before;
    ensure!(new.len() == 1, "{new:?}");
    for port in [8080, 8081] {
        wait_listening(pod.address(port)?)?;
        ensure!(visit(pod.address(port)?)? == 1);
    }

    first.sleeper().sleep()?;
    let all = pod.sleeper().siblings()?;
    ensure!(all.len() == 3, "{all:?}");
    for status in &all {
        let (state, reasons): (_, &[_]) = match status.name.as_str() {
            "first" => ("asleep", &[""]),
            // As of the last look at it.
            "second" => ("running", &["starting", "traffic"]),
            _ => ("running", &["sandbox"]),
        };
        let reason = status.awake_reason.name.as_str();
        ensure!(
            status.state == state && reasons.contains(&reason),
            "{status:?}"
        );
    }
    let refused = pod.sleeper().try_sleep();
    ensure!(
        refused.is_err_and(|error| format!("{error:?}").contains("sandbox")),
        "the sandbox sleeps"
    );
    // A sleeping neighbour takes nothing away from the one that is awake, and is not woken by it.
    ensure!(visit(pod.address(8081)?)? == 2);
    ensure!(visit(pod.address6(8081)?)? == 3);
    ensure!(first.sleeper().status()?.state == "asleep");
    ensure!(first.status()?.0 == "CONTAINER_RUNNING");
    second.sleeper().sleep()?;
    ensure!(visit(pod.address6(8080)?)? == 2);
    ensure!(second.sleeper().status()?.state == "asleep");
    ensure!(visit(pod.address(8081)?)? == 4);
    Ok(())
}

fn deleted_pod_leaves_nothing(node: &Node, _: Runtime) -> Result<()> {
    let round = || -> Result<()> {
        let pod = node.pod(Runtime::Podmotion)?;
        let app = App::new(["python3", "/apps/counter.py"]);
        let member = pod.start(Member::new("one", app))?;
        wait_listening(pod.address(8080)?)?;
        member.sleeper().sleep()?;
        visit(pod.address(8080)?)?;
        member.sleeper().sleep()?;
        // It ends after the last answer of containerd.
        let shim = node.shim_of(pod.id())?.pid;
        drop(pod);
        wait_gone(shim, PATIENCE)
    };
    round()?;
    let before = Census::take()?;
    round()?;
    Census::wait_as_before(&before)
}
