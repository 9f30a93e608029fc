//! Wakes on a node that is short of memory.

use std::fs;
use std::hint::black_box;
use std::thread;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Container, Exec, Node, Runtime};

use super::{counter, visit};
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "sleep::admission::a_wake_waits_for_memory_until_it_is_there",
        a_wake_waits_for_memory_until_it_is_there,
    ),
    (
        "sleep::admission::a_wake_does_not_wait_for_memory_for_ever",
        a_wake_does_not_wait_for_memory_for_ever,
    ),
    (
        "sleep::admission::a_wake_that_waits_for_memory_can_be_killed",
        a_wake_that_waits_for_memory_can_be_killed,
    ),
];

fn asleep(node: &Node) -> Result<Container> {
    let container = node.run(counter().mem_mb(40))?;
    container.stdout()?.wait_for("listening")?;
    container.sleep()?;
    Ok(container)
}

/// Bytes of memory that the machine has for programs.
fn available() -> Result<usize> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: usize = number.context("no MemAvailable")?.parse()?;
    Ok(kib << 10)
}

fn wait_for_the_wait(container: &Container) -> Result<()> {
    let status = container
        .sleeper()
        .wait_until("a wake that waits for memory", |status| {
            status.memory_wait.is_some()
        })?;
    ensure!(status.state == "waking", "{status:?}");
    Ok(())
}

fn a_wake_waits_for_memory_until_it_is_there(node: &Node, _: Runtime) -> Result<()> {
    let before = available()?;
    // What others take of it meanwhile stays below that.
    let spare = (before / 4).min(4 << 30);
    let least = before - spare;
    let _settings = node.set(&format!(
        "pressure.wake_min_memory = \"{least}B\"\npressure.wake_wait = \"1h\"\n",
    ))?;
    let container = asleep(node)?;
    let address = container.address(8080)?;
    // As much as is there now, whatever others have given back.
    let mut hog = Vec::new();
    while available()? > least - spare / 4 {
        hog.push(black_box(vec![1_u8; 64 << 20]));
    }
    let count = thread::scope(|scope| -> Result<u64> {
        let client = scope.spawn(|| visit(address));
        let waits = wait_for_the_wait(&container);
        drop(hog);
        let count = client.join().expect("a client has panicked");
        waits?;
        count
    })?;
    ensure!(count == 1);
    let status = container.wait_state("running")?;
    ensure!(
        status.memory_wait.is_none() && status.last_wake.memory_wait_us > 0,
        "{status:?}"
    );
    Ok(())
}

fn a_wake_does_not_wait_for_memory_for_ever(node: &Node, _: Runtime) -> Result<()> {
    let _settings =
        node.set("pressure.wake_min_memory = \"100%\"\npressure.wake_wait = \"300ms\"\n")?;
    let container = asleep(node)?;
    ensure!(visit(container.address(8080)?)? == 1);
    let last = container.wait_state("running")?.last_wake;
    ensure!(
        last.memory_wait_us >= 300_000 && last.took_us >= last.memory_wait_us,
        "{last:?}"
    );
    // Without a bound nothing waits, and a wake that does not wait says so.
    let _settings = node.set("pressure.wake_min_memory = \"0\"\n")?;
    let other = asleep(node)?;
    other.wake()?;
    let last = other.status()?.last_wake;
    ensure!(last.memory_wait_us == 0, "{last:?}");
    Ok(())
}

fn a_wake_that_waits_for_memory_can_be_killed(node: &Node, _: Runtime) -> Result<()> {
    // Longer than anybody waits here for an answer, and not for ever.
    let _settings =
        node.set("pressure.wake_min_memory = \"100%\"\npressure.wake_wait = \"2m\"\n")?;
    let container = asleep(node)?;
    thread::scope(|scope| -> Result<()> {
        let exec = scope.spawn(|| container.exec_output(&Exec::new(["/bin/true"])));
        let waits = wait_for_the_wait(&container);
        let killed = container.kill(9);
        let exit = container.wait();
        let exec = exec.join().expect("a client has panicked");
        waits.and(killed)?;
        let exit = exit?;
        ensure!(exit.status == 137, "{exit:?}");
        ensure!(exec.is_err(), "something ran in it: {exec:?}");
        Ok(())
    })
}
