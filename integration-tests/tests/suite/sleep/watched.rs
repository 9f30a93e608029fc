//! What a container writes to is noted from a second before it falls asleep by itself, and the rest is not read once it
//! stands still.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{App, Census, Container, Node, PATIENCE, Runtime};

use super::{drop_with_shim, visit};
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "sleep::watched::memory_is_compared_before_the_sleep",
        compared,
    ),
    ("sleep::watched::killed_while_watched", killed),
    ("sleep::watched::paused_while_watched", paused),
];

const MEM_MB: u32 = 30;

/// Has slept once and is awake again, for two seconds.
fn woken(node: &Node) -> Result<Container> {
    let app = App::counter().mem_mb(MEM_MB);
    let container = node.run(app.annotation("scaledown-duration", "2s"))?;
    container.stdout()?.wait_for("listening")?;
    let first = container.wait_state("asleep")?.last_sleep;
    ensure!(first.unread_bytes == 0, "of a first sleep: {first:?}");
    container.wake()?;
    Ok(container)
}

/// Waits until writes of the container are noted, or no longer. Nothing tells.
fn wait_watched(container: &Container, watched: bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while is_watched(container)? != watched {
        ensure!(Instant::now() < deadline, "watched: {}", !watched);
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// `VmFlags` of proc_pid_smaps(5): `uw` for a mapping whose writes a userfaultfd hears of.
fn is_watched(container: &Container) -> Result<bool> {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", container.pid()?))
        .context("read the mappings")?;
    let flags = smaps
        .lines()
        .filter_map(|line| line.strip_prefix("VmFlags:"));
    let mut all = flags.flat_map(str::split_ascii_whitespace);
    Ok(all.any(|flag| flag == "uw"))
}

fn compared(node: &Node, _: Runtime) -> Result<()> {
    let container = woken(node)?;
    wait_watched(&container, true)?;
    let second = container.wait_state("asleep")?.last_sleep;
    let most = u64::from(MEM_MB) << 20;
    ensure!(second.unread_bytes >= most, "{second:?}");
    ensure!(!is_watched(&container)?, "it is still watched");
    ensure!(visit(container.address(8080)?)? == 1);
    // What comes in the second before its sleep keeps it awake as ever, and it is not watched then.
    wait_watched(&container, true)?;
    ensure!(visit(container.address(8080)?)? == 2);
    wait_watched(&container, false)?;
    container.wait_state("asleep")?;
    ensure!(visit(container.address(8080)?)? == 3);
    Ok(())
}

fn killed(node: &Node, _: Runtime) -> Result<()> {
    drop_with_shim(woken(node)?)?;
    let before = Census::take()?;
    let container = woken(node)?;
    wait_watched(&container, true)?;
    container.kill(libc::SIGKILL)?;
    ensure!(container.wait()?.status == 137);
    drop(container);
    Census::wait_as_before(&before)
}

fn paused(node: &Node, _: Runtime) -> Result<()> {
    let container = woken(node)?;
    wait_watched(&container, true)?;
    container.pause()?;
    container.resume()?;
    container.wait_state("asleep")?;
    ensure!(visit(container.address(8080)?)? == 1);
    Ok(())
}
