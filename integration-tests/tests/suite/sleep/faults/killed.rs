//! Something is killed at whatever moment.

use std::fs;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use podmotion_integration_tests::{
    App, Census, Client, Container, Exec, Node, Runtime, State, was_starved,
};
use rustix::process::{Pid, Signal, kill_process};

use super::super::connections::ask;
use super::{count, images, wait_no_images};

fn counter(node: &Node) -> Result<Container> {
    let container = node.run(App::counter().mem_mb(20))?;
    container.stdout()?.wait_for("listening")?;
    Ok(container)
}

/// Kills every CRIU that the process `shim` has started. Returns how many there were.
pub(crate) fn kill_criu(shim: i32) -> Result<usize> {
    let mut killed = 0;
    // A thread that ends while it is looked at has no children.
    for thread in fs::read_dir(format!("/proc/{shim}/task"))?.flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
            if name.trim() == "criu" {
                // It may have ended by itself.
                let _ = kill_process(
                    Pid::from_raw(child.parse()?).context("pid 0")?,
                    Signal::KILL,
                );
                killed += 1;
            }
        }
    }
    Ok(killed)
}

/// Runs `work` and kills CRIU after a while, once there is one.
fn killing_criu<T: Send>(
    container: &Container,
    after: Duration,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<Result<T>> {
    let shim = container.node().shim_of(container.id())?.pid;
    thread::scope(|scope| {
        let working = scope.spawn(work);
        // The moment is the test's subject; there is no event at it.
        thread::sleep(after);
        while kill_criu(shim)? == 0 && !working.is_finished() {
            thread::yield_now();
        }
        working.join().map_err(|_| anyhow!("a thread panicked"))
    })
}

/// A request on a connection from before everything: the number in the answer. The container's memory
/// must be what it was.
fn count_on(kept: &TcpStream) -> Result<u64> {
    let all = ask(kept, "/mem")?;
    ensure!(all.contains("\"mem_ok\": true"), "{all}");
    let answer = ask(kept, "/")?;
    // What is not acknowledged keeps a container awake.
    rustix::net::sockopt::set_tcp_quickack(kept, true).context("acknowledge")?;
    let body = answer.rsplit("\r\n\r\n").next().unwrap_or_default();
    let body: serde_json::Value = serde_json::from_str(body).with_context(|| answer.clone())?;
    body["count"].as_u64().context("no count")
}

pub(super) fn criu_in_a_dump(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node)?;
    let kept = Client::default().connect(container.address(8080)?)?;
    let (mut awake, mut late) = (0, 0);
    // CRIU goes into the tasks in the first 30 ms or so.
    let early = (0..40).map(|n| Duration::from_micros(n * 800));
    let moments = early.chain((16..48).map(|n| Duration::from_millis(n * 2)));
    for (requests, after) in (1..).zip(moments) {
        ensure!(count_on(&kept)? == requests, "before {after:?}");
        // Asked for once more, it sleeps at once: the moment counts from there.
        let before = container.sleeper().wait_until("an opinion", |status| {
            status.state == "running" && status.awake_reason.is_some()
        })?;
        let sleep = killing_criu(&container, after, || container.sleeper().try_sleep())?;
        let Err(refused) = sleep else {
            late += 1;
            continue;
        };
        let settled = container.sleeper().wait_until("its fate", |status| {
            matches!(status.state.as_str(), "running" | "stopped")
        })?;
        ensure!(settled.state == "running", "after {after:?}: {settled:?}");
        let aborted = settled.counters.sleeps_aborted > before.counters.sleeps_aborted;
        if aborted || was_starved(&refused) {
            // There was no CRIU yet.
            continue;
        }
        // Or it was gone before it could be looked at.
        let told = ["CRIU ended without an answer", "open a descriptor for its"];
        ensure!(
            told.iter().any(|words| settled.last_error.contains(words)),
            "{settled:?}"
        );
        ensure!(settled.counters.sleeps_failed > 0, "{settled:?}");
        wait_no_images(&images(&container))?;
        awake += 1;
    }
    println!("awake {awake}, killed too late {late}");
    ensure!(awake > 30, "awake {awake}, killed too late {late}");
    Ok(())
}

pub(super) fn criu_in_a_restore(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node)?;
    let kept = Client::default().connect(container.address(8080)?)?;
    let rounds = 30;
    for n in 0..rounds {
        ensure!(count_on(&kept)? == n + 1, "at {n}");
        container.sleep()?;
        killing_criu(&container, Duration::from_millis(n * 2), || {
            container.wake()
        })??;
    }
    ensure!(count_on(&kept)? == rounds + 1);
    let counters = container.status()?.counters;
    ensure!(
        counters.wakes == rounds && counters.wakes_failed > 0 && counters.cold_starts == 0,
        "{counters:?}"
    );
    Ok(())
}

pub(super) fn shim(node: &Node, _: Runtime) -> Result<()> {
    // Makes what a first container makes for good, so that a count before does not miss it.
    let first = counter(node)?;
    first.sleep()?;
    first.wake()?;
    crate::sleep::drop_with_shim(first)?;
    let before = Census::take()?;
    type Prepare = fn(&Container) -> Result<()>;
    let awake: Prepare = |_| Ok(());
    let asleep: Prepare = |container| container.sleep();
    let woken: Prepare = |container| {
        container.sleep()?;
        count(container).map(drop)
    };
    for prepare in [awake, asleep, woken] {
        let container = counter(node)?;
        container
            .sleeper()
            .wait_until("a place at the gate", |status| {
                status.awake_reason.is_some()
            })?;
        prepare(&container)?;
        kill_shim(node, &container)?;
        drop(container);
        Census::wait_as_before(&before)?;
    }
    // In the middle of a dump and of a restore.
    for n in 0..4 {
        let container = counter(node)?;
        thread::scope(|scope| {
            // Fails with the shim.
            scope.spawn(|| container.sleep().and_then(|()| container.wake()));
            thread::sleep(Duration::from_millis(20 + n * 50));
            kill_shim(node, &container)
        })?;
        drop(container);
        Census::wait_as_before(&before)?;
    }
    Ok(())
}

pub(super) fn kill_shim(node: &Node, container: &Container) -> Result<()> {
    let shim = node.shim_of(container.id())?;
    kill_process(Pid::from_raw(shim.pid).context("pid 0")?, Signal::KILL)?;
    let exit = node.events().wait_for_exit(container.id())?;
    ensure!(exit.exit_status == 137, "{exit:?}");
    Ok(())
}

pub(super) fn containerd(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node)?;
    ensure!(count(&container)? == 1);
    let shim = node.shim_of(container.id())?;
    container.sleep()?;
    node.kill9()?;
    // Nobody needs containerd for a wake.
    ensure!(count(&container)? == 2);
    container.sleep()?;
    node.start_again()?;
    ensure!(container.state()? == State::Running && node.shim_of(container.id())? == shim);
    ensure!(container.status()?.state == "asleep");
    let (exit, output) = container.exec_output(&Exec::sh("echo again"))?;
    ensure!((exit.status, output.as_str()) == (0, "again\n"));
    container.sleep()?;
    node.restart()?;
    ensure!(container.status()?.state == "asleep");
    ensure!(count(&container)? == 3);
    container.sleep()?;
    container.kill(libc::SIGKILL)?;
    ensure!(container.wait()?.status == 137);
    Ok(())
}
