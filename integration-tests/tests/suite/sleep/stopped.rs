//! Containers that are stopped instead of being checkpointed, and started anew.

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{
    App, Census, Client, Container, Exec, Network, Node, PATIENCE, Runtime, State, ensure_woken_by,
    memory_limit, refusal, wait_gone,
};

use super::visit;
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "sleep::stopped::a_connection_starts_it_anew",
        a_connection_starts_it_anew,
    ),
    (
        "sleep::stopped::a_connection_keeps_it_awake",
        a_connection_keeps_it_awake,
    ),
    (
        "sleep::stopped::its_handler_is_called_and_an_exec_starts_it",
        its_handler_is_called_and_an_exec_starts_it,
    ),
    (
        "sleep::stopped::one_that_ignores_term_is_killed",
        one_that_ignores_term_is_killed,
    ),
    ("sleep::stopped::ends_where_it_lies", ends_where_it_lies),
    (
        "sleep::stopped::one_that_does_not_start_again_exits",
        one_that_does_not_start_again_exits,
    ),
    (
        "sleep::stopped::limits_are_those_of_the_last_change",
        limits_are_those_of_the_last_change,
    ),
    (
        "sleep::stopped::one_that_listens_no_more_is_told_of",
        one_that_listens_no_more_is_told_of,
    ),
    (
        "sleep::stopped::signals_reach_one_that_does_not_listen_yet",
        signals_reach_one_that_does_not_listen_yet,
    ),
];

fn stopping(app: App) -> App {
    app.annotation("disable-checkpointing", "true")
        .annotation("scaledown-duration", "1h")
}

fn listening(node: &Node) -> Result<Container> {
    let container = node.run(stopping(App::counter().mem_mb(20)))?;
    container.stdout()?.wait_for("listening")?;
    Ok(container)
}

/// A shell script with a port, which nothing needs to listen on.
fn script(node: &Node, script: &str) -> Result<Container> {
    let app = stopping(App::sh(script).network(Network::Own)).ports(&[80]);
    let container = node.run(app)?;
    container.stdout()?.wait_for("up")?;
    Ok(container)
}

fn a_connection_starts_it_anew(node: &Node, _: Runtime) -> Result<()> {
    super::drop_with_shim(listening(node)?)?;
    let before = Census::take()?;
    let container = listening(node)?;
    let address = container.address(8080)?;
    ensure!(visit(address)? == 1);
    for round in 1..=3 {
        ensure!(visit(address)? == 2);
        let pid = container.pid()?.try_into()?;
        container.sleep()?;
        wait_gone(pid, PATIENCE)?;
        let asleep = container.status()?;
        ensure!(asleep.depth == "cold", "{asleep:?}");
        ensure!(asleep.last_sleep.memory_bytes > 20 << 20, "{asleep:?}");
        ensure!(asleep.last_sleep.image_bytes == 0, "{asleep:?}");
        let images = Path::new("/var/lib/podmotion/checkpoints").join(container.id());
        ensure!(!images.exists(), "there are images");
        ensure!(container.state()? == State::Running);
        // Held until it listens: nobody is refused. It has lost what it had in memory.
        ensure!(visit(address)? == 1, "it has kept its state");
        let awake = container.wait_state("running")?;
        ensure!(awake.last_wake.depth == "cold", "{awake:?}");
        ensure!(awake.counters.wakes == round, "{awake:?}");
        ensure!(awake.counters.cold_starts == 0, "{awake:?}");
        let started = usize::try_from(round)? + 1;
        container.stdout()?.wait_for_times("listening", started)?;
    }
    let events = node.events().of(container.id());
    ensure!(
        events.iter().all(|event| event.topic != "/tasks/exit"),
        "{events:?}"
    );
    drop(container);
    Census::wait_as_before(&before)
}

fn a_connection_keeps_it_awake(node: &Node, _: Runtime) -> Result<()> {
    let container = listening(node)?;
    let address = container.address(8080)?;
    let open = TcpStream::connect(address).context("connect")?;
    super::ask(&open, "/")?;
    let Err(refused) = container.sleeper().try_sleep() else {
        bail!("its connection was ended");
    };
    let told = refusal(&refused).context("no answer")?;
    ensure!(told.contains("it has 1 open connections"), "{told}");
    super::ask(&open, "/")?;
    // It counts until the program has ended it too.
    open.set_read_timeout(Some(PATIENCE))
        .context("set a timeout")?;
    open.shutdown(Shutdown::Write).context("close")?;
    let mut rest = Vec::new();
    (&open)
        .read_to_end(&mut rest)
        .context("wait for the other end")?;
    ensure!(rest.is_empty(), "{rest:?}");
    container.sleep()?;
    ensure!(container.status()?.depth == "cold");
    Ok(())
}

fn its_handler_is_called_and_an_exec_starts_it(node: &Node, _: Runtime) -> Result<()> {
    let body = "trap 'echo told; exit 3' TERM; echo up; while :; do sleep 0.05; done";
    let container = script(node, body)?;
    container.sleep()?;
    container.stdout()?.wait_for("told")?;
    let (exit, said) = container.exec_output(&Exec::sh("echo hello"))?;
    ensure!(exit.status == 0 && said == "hello\n", "{exit:?} {said}");
    // A process can be run in it before its own program has said anything.
    container.stdout()?.wait_for_times("up\n", 2)?;
    ensure!(container.stdout()?.text() == "up\ntold\nup\n");
    let awake = container.status()?;
    ensure_woken_by("exec", &awake)?;
    Ok(())
}

fn one_that_ignores_term_is_killed(node: &Node, _: Runtime) -> Result<()> {
    let _settings = node.set("stop.timeout = \"200ms\"\n")?;
    let container = script(node, "trap '' TERM; echo up; while :; do sleep 0.05; done")?;
    let pid = container.pid()?.try_into()?;
    container.sleep()?;
    wait_gone(pid, PATIENCE)?;
    let asleep = container.status()?;
    ensure!(asleep.last_sleep.took_us >= 200_000, "{asleep:?}");
    container.wake()?;
    container.stdout()?.wait_for_times("up", 2)
}

fn ends_where_it_lies(node: &Node, _: Runtime) -> Result<()> {
    for (signal, status) in [(libc::SIGTERM, 128 + 15), (libc::SIGKILL, 128 + 9)] {
        let container = listening(node)?;
        container.sleep()?;
        container.kill(signal)?;
        let exit = container.wait()?;
        ensure!(exit.status == status, "{exit:?}");
        container.delete_task()?;
        let started = container.stdout()?.text().matches("listening").count();
        ensure!(started == 1, "it was started for its end");
    }
    Ok(())
}

fn one_that_does_not_start_again_exits(node: &Node, _: Runtime) -> Result<()> {
    let body = "[ ! -e /tmp/was ] || exit 7; mkdir -p /tmp; touch /tmp/was; \
                trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let container = script(node, body)?;
    container.sleep()?;
    // It may have run for a moment.
    drop(container.wake());
    let exit = container.wait()?;
    ensure!(exit.status == 7, "{exit:?}");
    Ok(())
}

fn limits_are_those_of_the_last_change(node: &Node, _: Runtime) -> Result<()> {
    const CHANGED: u64 = 192 << 20;
    let app = stopping(App::counter().mem_mb(20)).memory_limit(128 << 20);
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    container.update_memory(CHANGED)?;
    container.sleep()?;
    ensure!(visit(container.address(8080)?)? == 1);
    let limit = memory_limit(&container.cgroup()?)?;
    ensure!(limit == CHANGED, "the limit is {limit}");
    Ok(())
}

/// It listens the first time only.
const LISTENS_ONCE: &str = "trap 'exit 5' TERM; \
    [ -e /tmp/was ] || { mkdir -p /tmp; touch /tmp/was; nc -l -p 80 & \
    until grep -q ':0050 0*:0000 0A' /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done; }; \
    echo up; while :; do sleep 0.05; done";

fn signals_reach_one_that_does_not_listen_yet(node: &Node, _: Runtime) -> Result<()> {
    for (signal, status) in [(libc::SIGTERM, 5), (libc::SIGKILL, 128 + 9)] {
        let container = node.run(stopping(App::sh(LISTENS_ONCE).network(Network::Own)))?;
        container.stdout()?.wait_for("up")?;
        container.sleep()?;
        let address = container.address(80)?;
        // Held until it listens, which is never.
        let client = thread::spawn(move || Client::default().get(address, "/"));
        container.stdout()?.wait_for_times("up", 2)?;
        container.kill(signal)?;
        let exit = container.wait()?;
        ensure!(exit.status == status, "{exit:?}");
        let answer = client.join().ok().context("the client panicked")?;
        ensure!(answer.is_err(), "{answer:?}");
    }
    Ok(())
}

fn one_that_listens_no_more_is_told_of(node: &Node, _: Runtime) -> Result<()> {
    let _settings = node.set("stop.start_timeout = \"300ms\"\n")?;
    let app = stopping(App::sh(LISTENS_ONCE).network(Network::Own));
    let container = node.run(app)?;
    container.stdout()?.wait_for("up")?;
    container.sleep()?;
    let address = container.address(80)?;
    let client = Client::default();
    ensure!(client.get(address, "/").is_err(), "somebody answers");
    let awake = container.wait_state("running")?;
    ensure!(
        awake.last_error.contains("it does not listen on {80}"),
        "{awake:?}"
    );
    Ok(())
}
