//! From light sleep to deep, and what keeps it from that.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{
    App, Client, Container, Depth, Exec, Network, Node, PATIENCE, Runtime, State, Status,
    rss_anon_kib, wait_gone,
};

use super::faults::{Fake, Mode, wait_no_images};
use super::halted::Halted;
use super::visit;
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    ("sleep::depth::light_becomes_deep", light_becomes_deep),
    (
        "sleep::depth::a_second_light_sleep_writes_little",
        a_second_light_sleep_writes_little,
    ),
    (
        "sleep::depth::a_wake_while_it_goes_deeper_is_answered",
        a_wake_while_it_goes_deeper_is_answered,
    ),
    (
        "sleep::depth::what_cannot_be_checkpointed_stays_light",
        what_cannot_be_checkpointed_stays_light,
    ),
    (
        "sleep::depth::another_users_processes_sleep_as_deep_as_the_node_may_look",
        another_users_processes_sleep_as_deep_as_the_node_may_look,
    ),
    ("sleep::depth::every_page_comes_back", every_page_comes_back),
    (
        "sleep::depth::a_client_does_not_wait_for_memory_to_be_copied",
        a_client_does_not_wait_for_memory_to_be_copied,
    ),
    (
        "sleep::depth::a_client_is_connected_before_the_memory_is_there",
        a_client_is_connected_before_the_memory_is_there,
    ),
    (
        "sleep::depth::what_others_read_of_a_sleeper_is_there",
        what_others_read_of_a_sleeper_is_there,
    ),
];

/// A counter that sleeps when it is told to, light at first and deep after `after`.
pub(super) fn counter(node: &Node, after: &str, megabytes: u32) -> Result<Container> {
    ensure!(node.depth() == Depth::Light);
    let app = App::counter()
        .mem_mb(megabytes)
        .annotation("scaledown-duration", "1h")
        .annotation("deep-sleep-after", after);
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    Ok(container)
}

pub(super) fn memory_images(container: &Container) -> PathBuf {
    let name = format!("{}.memory", container.id());
    Path::new("/var/lib/podmotion/checkpoints").join(name)
}

pub(super) fn wait_depth(container: &Container, depth: &str) -> Result<Status> {
    container
        .sleeper()
        .wait_until(&format!("{depth} sleep"), |status| status.depth == depth)
}

fn light_becomes_deep(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node, "500ms", 20)?;
    let address = container.address(8080)?;
    ensure!(visit(address)? == 1);
    for number in 2..=4 {
        let pid = container.pid()?.try_into()?;
        container.sleep()?;
        let deep = wait_depth(&container, "deep")?;
        wait_gone(pid, PATIENCE)?;
        ensure!(
            deep.last_sleep.depth == "deep" && deep.memory_freed_bytes > 20 << 20,
            "{deep:?}"
        );
        // Kept once, not twice.
        wait_no_images(&memory_images(&container))?;
        ensure!(container.state()? == State::Running);
        ensure!(visit(address)? == number);
        ensure!(container.sleeper().wait_whole()?.last_wake.depth == "deep");
    }
    Ok(())
}

fn a_second_light_sleep_writes_little(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node, "never", 60)?;
    let address = container.address(8080)?;
    ensure!(visit(address)? == 1);
    container.sleep()?;
    let first = container.status()?;
    let pid = container.pid()?.try_into()?;
    ensure!(rss_anon_kib(pid)? < 3 << 10, "memory stays");
    ensure!(first.last_sleep.memory_bytes > 60 << 20, "{first:?}");
    ensure!(visit(address)? == 2);
    let awake = container.sleeper().wait_whole()?;
    ensure!(awake.last_wake.depth == "light", "{awake:?}");
    container.sleep()?;
    let second = container.status()?;
    // What it has touched is written once more, beside what is there.
    let grown = second.image_bytes - first.image_bytes;
    ensure!(grown < 8 << 20, "{grown} bytes more: {second:?}");
    // What the first wake has asked for is what the next one gets.
    let asked = awake.last_wake.fill.faults;
    let set = second.last_sleep.working_set_bytes;
    ensure!(
        first.last_sleep.working_set_bytes == 0 && set > 0 && set <= asked * (64 << 10),
        "a working set of {set} bytes after {asked} faults: {first:?} {second:?}"
    );
    // The recorded working set goes in before it runs.
    ensure!(visit(address)? == 3);
    let awake = container.sleeper().wait_whole()?;
    let fill = awake
        .last_wake
        .fill
        .as_ref()
        .with_context(|| format!("no fill: {awake:?}"))?;
    ensure!(
        fill.prefetch_bytes > 0 && fill.prefetch_bytes <= set,
        "{fill:?}"
    );
    let wake = &awake.last_wake;
    ensure!(
        wake.prefetch_us > 0 && wake.thaw_us > 0 && wake.prefetch_us + wake.thaw_us <= wake.took_us,
        "{wake:?}"
    );
    ensure!((fill.faults > 0) == (fill.faults_us > 0), "{fill:?}");
    Ok(())
}

fn a_wake_while_it_goes_deeper_is_answered(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node, "100ms", 60)?;
    let address = container.address(8080)?;
    ensure!(visit(address)? == 1);
    for number in 2..=13 {
        container.sleeper().wait_whole()?;
        container.sleep()?;
        // Each time at another moment of the way down.
        thread::sleep(Duration::from_millis(80 + (number - 2) * 15));
        ensure!(visit(address)? == number, "at {number}");
    }
    let status = container.sleeper().wait_whole()?;
    ensure!(
        status.counters.sleeps_failed == 0 && status.last_error.is_empty(),
        "{status:?}"
    );
    Ok(())
}

fn what_cannot_be_checkpointed_stays_light(node: &Node, _: Runtime) -> Result<()> {
    let fake = Fake::new(
        node,
        "checkpoint.backoff_initial = \"1h\"\ncheckpoint.backoff_max = \"1h\"\n",
    )?;
    let app = App::counter()
        .mem_mb(20)
        .annotation("scaledown-duration", "500ms")
        .annotation("deep-sleep-after", "500ms");
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    let address = container.address(8080)?;
    fake.set(Mode::ExitDump)?;
    ensure!(visit(address)? == 1);
    let tried = container
        .sleeper()
        .wait_until("a failed checkpoint", |status| {
            status.counters.sleeps_failed == 1
        })?;
    ensure!(
        tried.state == "asleep" && tried.depth == "light",
        "{tried:?}"
    );
    ensure!(
        tried.last_error.contains("Error (fake/cr.c:7)"),
        "{tried:?}"
    );
    let pid = container.pid()?.try_into()?;
    ensure!(rss_anon_kib(pid)? < 3 << 10, "memory stays");
    ensure!(visit(address)? == 2);
    // That keeps it from sleeping light no more than before.
    let again = container
        .sleeper()
        .wait_until("another light sleep", |status| {
            status.depth == "light" && status.counters.sleeps > tried.counters.sleeps
        })?;
    ensure!(
        again.last_error.contains("Error (fake/cr.c:7)"),
        "{again:?}"
    );
    ensure!(visit(address)? == 3);
    Ok(())
}

/// CRIU asks for the limits of each process. Those of another user's are told to CAP_SYS_RESOURCE alone, which the node
/// may not have.
fn another_users_processes_sleep_as_deep_as_the_node_may_look(
    node: &Node,
    _: Runtime,
) -> Result<()> {
    const CAP_SYS_RESOURCE: u32 = 24;
    let own = std::fs::read_to_string("/proc/self/status").context("read our capabilities")?;
    let capabilities = own.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = u64::from_str_radix(capabilities.context("no CapEff")?.trim(), 16)?;
    let may_look = capabilities & (1 << CAP_SYS_RESOURCE) != 0;

    let become_nobody = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); \
                         os.execvp('python3', ['python3', '/apps/counter.py'])";
    let app = App::new(["python3", "-c", become_nobody])
        .network(Network::Own)
        .mem_mb(20)
        .annotation("scaledown-duration", "500ms")
        .annotation("deep-sleep-after", "500ms");
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    let address = container.address(8080)?;
    ensure!(visit(address)? == 1);
    let tried = container.sleeper().wait_until("a checkpoint", |status| {
        status.state == "asleep" && (status.depth == "deep" || status.counters.sleeps_failed > 0)
    })?;
    if may_look {
        ensure!(tried.depth == "deep", "{tried:?}");
    } else {
        ensure!(
            tried.depth == "light"
                && tried
                    .last_error
                    .contains("Can't get rlimit 0: Operation not permitted"),
            "{tried:?}"
        );
    }
    ensure!(visit(address)? == 2);
    Ok(())
}

fn every_page_comes_back(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node, "never", 100)?;
    let address = container.address(8080)?;
    for _ in 0..5 {
        container.sleep()?;
        // All of it is read while most of it is still out.
        let answer = Client::default().get(address, "/mem")?;
        ensure!(answer.body.contains("\"mem_ok\": true"), "{answer:?}");
        container.sleeper().wait_whole()?;
    }
    Ok(())
}

/// Waits until some of its memory has been written. Nothing tells.
fn wait_copying(container: &Container) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let written: u64 = std::fs::read_dir(memory_images(container))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| Some(entry.metadata().ok()?.len()))
            .sum();
        if written > 4 << 20 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "nothing is copied");
        thread::yield_now();
    }
}

fn a_client_does_not_wait_for_memory_to_be_copied(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node, "never", 500)?;
    let address = container.address(8080)?;
    thread::scope(|scope| {
        let asking = scope.spawn(|| container.sleeper().try_sleep());
        // What comes before its packets are held is simply answered.
        wait_copying(&container)?;
        ensure!(visit(address)? == 1);
        ensure!(
            asking.join().is_ok_and(|asked| asked.is_err()),
            "it fell asleep all the same"
        );
        anyhow::Ok(())
    })?;
    let status = container.status()?;
    ensure!(
        status.counters.sleeps == 0 && status.counters.sleeps_aborted == 1,
        "{status:?}"
    );
    container.sleep()?;
    ensure!(visit(address)? == 2);
    Ok(())
}

/// Its packets are given back when the wake has begun, beside what the wake does: the kernel answers for the frozen process.
fn a_client_is_connected_before_the_memory_is_there(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node, "never", 5)?;
    container.sleep()?;
    let address = container.address(8080)?;
    let halted = Halted::pager(node, &container)?;
    let connection = Client::default().connect(address)?;
    let status = container.status()?;
    ensure!(
        status.state == "waking" && status.counters.wakes == 0,
        "{status:?}"
    );
    drop(halted);
    drop(connection);
    let status = container.sleeper().wait_whole()?;
    let held = Duration::from_micros(status.last_wake.first_packet_held_us);
    let took = Duration::from_micros(status.last_wake.took_us);
    ensure!(
        held >= took,
        "held for {held:?}, which took {took:?}: {status:?}"
    );
    ensure!(status.last_wake.packets == 1, "{status:?}");
    ensure!(visit(address)? == 1);
    Ok(())
}

/// `ps` of a node, and `cat /proc/1/cmdline` by the exec that has woken it.
fn what_others_read_of_a_sleeper_is_there(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node, "never", 20)?;
    let pid = container.pid()?;
    let read = || -> Result<Vec<Vec<u8>>> {
        ["cmdline", "environ", "comm", "status", "stat", "maps"]
            .iter()
            .map(|name| std::fs::read(format!("/proc/{pid}/{name}")).context("read"))
            .collect()
    };
    let awake = read()?;
    container.sleep()?;
    let asleep = read()?;
    ensure!(awake[..3] == asleep[..3], "{awake:?} {asleep:?}");
    ensure!(container.status()?.state == "asleep", "it was woken");
    for _ in 0..5 {
        let (exit, said) = container.exec_output(&Exec::sh("cat /proc/1/cmdline"))?;
        ensure!(
            exit.status == 0 && said.contains("counter.py"),
            "{exit:?} {said:?}"
        );
        container.sleeper().wait_whole()?;
        container.sleep()?;
    }
    Ok(())
}
