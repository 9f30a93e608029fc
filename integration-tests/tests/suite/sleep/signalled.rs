//! Signals that a container in light sleep is sent past containerd.

use std::thread;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{App, Container, Depth, Network, Node, Runtime, ensure_woken_by};
use rustix::process::{Pid, Signal, kill_process};

use super::halted::Halted;
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "sleep::signalled::term_from_the_node_wakes",
        term_from_the_node_wakes,
    ),
    (
        "sleep::signalled::one_that_is_waited_for_wakes",
        one_that_is_waited_for_wakes,
    ),
    (
        "sleep::signalled::kill_from_the_node_ends_it",
        kill_from_the_node_ends_it,
    ),
    (
        "sleep::signalled::killed_while_it_wakes_it_was_woken",
        killed_while_it_wakes_it_was_woken,
    ),
    (
        "sleep::signalled::what_its_processes_send_each_other_does_not_wake",
        what_its_processes_send_each_other_does_not_wake,
    ),
];

/// Asleep, with no port to wake it by.
fn asleep(node: &Node, app: App) -> Result<Container> {
    ensure!(node.depth() == Depth::Light);
    let app = app.network(Network::Own).ports(&[8080]);
    let container = node.run(app.annotation("deep-sleep-after", "never"))?;
    container.stdout()?.wait_for("ready")?;
    container.sleep()?;
    Ok(container)
}

/// As somebody on the node does, or systemd that shuts it down.
fn send(container: &Container, signal: Signal) -> Result<()> {
    let pid = container.pid()?.try_into()?;
    kill_process(Pid::from_raw(pid).context("pid 0")?, signal).context("send a signal")
}

fn term_from_the_node_wakes(node: &Node, _: Runtime) -> Result<()> {
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let container = asleep(node, App::sh(script))?;
    send(&container, Signal::TERM)?;
    ensure!(container.wait()?.status == 5);
    container.stdout()?.wait_for("caught")?;
    let status = container.status()?;
    ensure_woken_by("signal", &status)?;
    ensure!(container.delete_task()?.status == 5);
    Ok(())
}

/// Many a container's first process has signals blocked and asks for them (`sigwait`), and may have one waiting that it is
/// not interested in now.
fn one_that_is_waited_for_wakes(node: &Node, _: Runtime) -> Result<()> {
    let program = "
import signal, os, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
os.kill(os.getpid(), signal.SIGUSR1)
print('ready', flush=True)
signal.sigwait([signal.SIGTERM])
sys.exit(6)
";
    let container = asleep(node, App::new(["python3", "-c", program]))?;
    ensure!(container.status()?.counters.wakes == 0);
    send(&container, Signal::TERM)?;
    ensure!(container.wait()?.status == 6);
    ensure!(container.status()?.counters.wakes == 1);
    ensure!(container.delete_task()?.status == 6);
    Ok(())
}

fn kill_from_the_node_ends_it(node: &Node, _: Runtime) -> Result<()> {
    let container = asleep(node, App::sh("echo ready; sleep 1000"))?;
    send(&container, Signal::KILL)?;
    ensure!(container.wait()?.status == 128 + 9);
    ensure!(container.delete_task()?.status == 128 + 9);
    Ok(())
}

/// The freezer of version 2 has it end at once, that of version 1 as soon as it runs: before it is known that it does.
fn killed_while_it_wakes_it_was_woken(node: &Node, _: Runtime) -> Result<()> {
    let container = asleep(node, App::sh("echo ready; sleep 1000"))?;
    let halted = Halted::pager(node, &container)?;
    let sleeper = container.sleeper();
    thread::scope(|scope| -> Result<()> {
        let waking = scope.spawn(|| sleeper.wake());
        sleeper.wait_until("a wake", |status| status.state == "waking")?;
        send(&container, Signal::KILL)?;
        drop(halted);
        // Whoever asked hears of the wake, or of the end.
        drop(waking.join());
        Ok(())
    })?;
    ensure!(container.wait()?.status == 128 + 9);
    let status = container.status()?;
    ensure!(
        status.state == "stopped" && status.counters.wakes == 1,
        "{status:?}"
    );
    ensure!(container.delete_task()?.status == 128 + 9);
    Ok(())
}

/// They are stopped in the middle of that, one with a signal that it has not taken.
fn what_its_processes_send_each_other_does_not_wake(node: &Node, _: Runtime) -> Result<()> {
    let program = "
import os, signal
signal.signal(signal.SIGUSR1, lambda *_: None)
first = os.getpid()
if os.fork() == 0:
    print('ready', flush=True)
    while True:
        os.kill(first, signal.SIGUSR1)
while True:
    pass
";
    let container = asleep(node, App::new(["python3", "-c", program]))?;
    for wakes in 1..=20 {
        container.wake()?;
        container.sleeper().wait_whole()?;
        container.sleep()?;
        // It has been looked at once by now.
        let status = container.status()?;
        ensure!(
            status.state == "asleep" && status.counters.wakes == wakes,
            "{status:?}"
        );
    }
    Ok(())
}
