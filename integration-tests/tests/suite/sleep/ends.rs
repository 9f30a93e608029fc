//! A container is stopped and deleted, whatever it does at that moment.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podmotion_integration_tests::{App, Census, Container, Network, Node, Runtime, freeze, thaw};

use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    ("sleep::ends::killed_asleep", killed_asleep),
    ("sleep::ends::terminated_asleep", terminated_asleep),
    (
        "sleep::ends::asked_to_sleep_with_a_signal_on_its_way",
        signal_on_its_way,
    ),
    (
        "sleep::ends::told_to_end_it_does_not_sleep_before_it_has",
        told_to_end,
    ),
    ("sleep::ends::deleted_falling_asleep", falling_asleep),
    ("sleep::ends::deleted_waking", waking),
];

const KILLED: u32 = 128 + 9;

fn counter(node: &Node) -> Result<Container> {
    let container = node.run(App::counter().mem_mb(20))?;
    container.stdout()?.wait_for("listening")?;
    Ok(container)
}

/// Counts before, with everything there that a first container makes for good.
fn before(node: &Node) -> Result<Census> {
    let first = counter(node)?;
    first.sleep()?;
    first.wake()?;
    super::drop_with_shim(first)?;
    Census::take()
}

/// Sends the signal, waits for the end and deletes. Returns the exit status.
fn end(container: &Container, signal: i32) -> Result<u32> {
    container.kill(signal)?;
    let exit = container.wait()?;
    ensure!(container.delete_task()? == exit);
    Ok(exit.status)
}

/// The exit status of one that is awake when it is told to end.
fn terminated(node: &Node) -> Result<u32> {
    end(&counter(node)?, libc::SIGTERM)
}

fn killed_asleep(node: &Node, _: Runtime) -> Result<()> {
    let before = before(node)?;
    let container = counter(node)?;
    container.sleep()?;
    ensure!(end(&container, libc::SIGKILL)? == KILLED);
    drop(container);
    Census::wait_as_before(&before)
}

fn terminated_asleep(node: &Node, _: Runtime) -> Result<()> {
    let before = before(node)?;
    let status = terminated(node)?;
    let container = counter(node)?;
    container.sleep()?;
    // It is woken for its handler.
    ensure!(end(&container, libc::SIGTERM)? == status);
    drop(container);
    let discarded = node.run(App::counter().annotation("terminate-asleep", "discard"))?;
    discarded.stdout()?.wait_for("listening")?;
    discarded.sleep()?;
    ensure!(end(&discarded, libc::SIGTERM)? == 128 + 15);
    drop(discarded);
    Census::wait_as_before(&before)
}

/// Asleep it would not take it, and nobody would send it another one.
fn signal_on_its_way(node: &Node, _: Runtime) -> Result<()> {
    let before = before(node)?;
    let status = terminated(node)?;
    let container = counter(node)?;
    let pid = Pid::from_raw(container.pid()?.try_into()?);
    // As if the processors had others to run.
    let cgroup = container.cgroup()?;
    let (above, _) = cgroup.rsplit_once('/').context("a group above it")?;
    freeze(above)?;
    kill(pid, Signal::SIGTERM)?;
    let refused = container.sleeper().try_sleep();
    thaw(above)?;
    let exit = container.wait()?;
    let refused = format!("{:#}", refused.err().context("it slept")?);
    ensure!(refused.contains("a signal is on its way"), "{refused}");
    ensure!(exit.status == status, "exit status {}", exit.status);
    ensure!(container.delete_task()? == exit);
    drop(container);
    Census::wait_as_before(&before)
}

/// What it does in its grace period can take longer than its idle time and look idle.
fn told_to_end(node: &Node, _: Runtime) -> Result<()> {
    let before = before(node)?;
    let program = "
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
print('ready', flush=True)
signal.sigwait([signal.SIGTERM])
signal.sigwait([signal.SIGUSR1])
sys.exit(7)
";
    let app = App::new(["python3", "-c", program]).network(Network::Own);
    let container = node.run(app.ports(&[8080]).annotation("scaledown-duration", "1s"))?;
    container.stdout()?.wait_for("ready")?;
    container.wait_state("asleep")?;
    container.kill(libc::SIGTERM)?;
    let told = container.sleeper().wait_reason("terminating")?;
    // Twice its idle time without a try.
    thread::sleep(Duration::from_secs(2));
    let refused = container.sleeper().try_sleep();
    let refused = format!("{:#}", refused.err().context("it slept")?);
    ensure!(
        refused.contains("signal 15 has told it to end"),
        "{refused}"
    );
    let status = container.status()?;
    ensure!(status.counters == told.counters, "{status:?}");
    ensure!(end(&container, libc::SIGUSR1)? == 7);
    drop(container);
    Census::wait_as_before(&before)
}

fn falling_asleep(node: &Node, _: Runtime) -> Result<()> {
    at_many_moments(node, |container| drop(container.sleep()))
}

fn waking(node: &Node, _: Runtime) -> Result<()> {
    at_many_moments(node, |container| {
        // A failure of these is seen in what follows.
        drop(container.sleep());
        drop(container.wake());
    })
}

fn at_many_moments(node: &Node, busy: fn(&Container)) -> Result<()> {
    let before = before(node)?;
    let terminated = terminated(node)?;
    for n in 0..10 {
        let container = counter(node)?;
        let (signal, status) = match n % 2 {
            0 => (libc::SIGKILL, KILLED),
            _ => (libc::SIGTERM, terminated),
        };
        let ended = thread::scope(|scope| {
            scope.spawn(|| busy(&container));
            // The moment is the test's subject; there is no event at it.
            thread::sleep(Duration::from_millis(n * 15));
            end(&container, signal)
        })?;
        ensure!(ended == status, "exit status {ended} at {n}");
    }
    Census::wait_as_before(&before)
}
