//! When a container falls asleep by itself, and what it says of why it does not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{
    App, Client, Container, Exec, Network, Node, PATIENCE, Runtime, Status, refusal,
};

use super::visit;
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    ("sleep::idle::sleeps_after_its_time", sleeps_after_its_time),
    ("sleep::idle::exec_keeps_awake", exec_keeps_awake),
    ("sleep::idle::busy_cpu_keeps_awake", busy_cpu_keeps_awake),
    (
        "sleep::idle::request_without_an_answer_keeps_awake",
        request_without_an_answer_keeps_awake,
    ),
    (
        "sleep::idle::request_without_an_answer_is_not_waited_for_without_end",
        request_without_an_answer_is_not_waited_for_without_end,
    ),
    ("sleep::idle::zero_is_never", zero_is_never),
    (
        "sleep::idle::asked_while_it_is_looked_at",
        asked_while_it_is_looked_at,
    ),
    ("sleep::idle::no_port_no_sleep", no_port_no_sleep),
    (
        "sleep::idle::in_the_middle_of_a_request_it_is_not_stopped",
        in_the_middle_of_a_request_it_is_not_stopped,
    ),
];

const IDLE: Duration = Duration::from_secs(1);

/// How much too early a packet can be noted: the gate goes by the clock that the kernel's tick moves on,
/// and in a virtual machine that is short of processors several ticks come late.
const TICKS_MS: i64 = 100;

fn quick() -> App {
    App::counter().annotation("scaledown-duration", "1s")
}

/// How often it was put to sleep, or nearly.
fn tries(status: &Status) -> u64 {
    status.counters.sleeps + status.counters.sleeps_aborted
}

fn unix_ms() -> Result<i64> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("read the clock")?;
    Ok(now.as_millis().try_into()?)
}

fn sleeps_after_its_time(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(quick())?;
    // Before it listens: a program that needs its idle time for that sleeps soon after.
    let status = container.sleeper().wait_reason("starting")?;
    ensure!(status.counters.sleeps == 0, "{status:?}");
    container.stdout()?.wait_for("listening")?;
    let address = container.address(8080)?;
    // Requests keep it awake for three times its idle time, which begin anew where one came late.
    let (mut requests, mut tried) = (0, 0);
    let (mut since, mut before) = (Instant::now(), None::<Instant>);
    let last = loop {
        requests += 1;
        let (now, last) = (Instant::now(), unix_ms()?);
        ensure!(visit(address)? == requests);
        let status = container.status()?;
        // As much earlier as a packet can be noted.
        let in_time = IDLE - 2 * Duration::from_millis(TICKS_MS.unsigned_abs());
        if before.is_none_or(|before| before.elapsed() >= in_time) {
            (since, tried) = (now, tries(&status));
        } else if since.elapsed() >= 3 * IDLE {
            ensure!(
                status.awake_reason.name == "traffic" && tries(&status) == tried,
                "{status:?}"
            );
            break last;
        }
        before = Some(now);
        thread::sleep(IDLE / 5);
    };
    let status = container.wait_state("asleep")?;
    let idle = status.last_sleep.at_unix_ms - last;
    let took = i64::try_from(status.last_sleep.took_us / 1000)?;
    ensure!(
        idle - took >= 1000 - TICKS_MS,
        "it slept {idle} ms after its last request"
    );
    ensure!(
        idle - took < 3000,
        "it slept only {idle} ms after its last request"
    );
    // The same again, counted from the wake.
    let sleeps = status.counters.sleeps;
    ensure!(visit(address)? == requests + 1);
    let status = container
        .sleeper()
        .wait_until("another sleep", |status| status.counters.sleeps > sleeps)?;
    let idle = status.last_sleep.at_unix_ms - status.last_wake.at_unix_ms;
    ensure!(idle >= 900, "it slept {idle} ms after its wake");
    Ok(())
}

fn exec_keeps_awake(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(quick())?;
    container.stdout()?.wait_for("listening")?;
    let exec = container.exec(&Exec::sh("echo ready; exec sleep 1000"))?;
    exec.start()?;
    exec.stdout()?.wait_for("ready")?;
    // It may have slept before the exec, which has woken it then.
    let before = container.sleeper().wait_reason("exec")?;
    let refused = container.sleeper().try_sleep().err().context("it sleeps")?;
    let words = refusal(&refused).context("no answer")?;
    ensure!(words.contains("an exec is in progress"), "{words:?}");
    // Twice its idle time without a try.
    thread::sleep(2 * IDLE);
    let status = container.status()?;
    ensure!(status.awake_reason.name == "exec", "{status:?}");
    ensure!(tries(&status) == tries(&before), "{status:?}");
    let ended = Instant::now();
    exec.kill(libc::SIGKILL)?;
    container.wait_state("asleep")?;
    ensure!(
        ended.elapsed() >= IDLE,
        "it slept {:?} after the exec",
        ended.elapsed()
    );
    Ok(())
}

fn busy_cpu_keeps_awake(node: &Node, _: Runtime) -> Result<()> {
    let script = "import socket\ns = socket.create_server(('', 8080))\nprint('ready', flush=True)\n\
                  while True: pass";
    let app = App::new(["python3", "-c", script]).network(Network::Own);
    let app = app.annotation("scaledown-duration", "1s");
    let busy = node.run(app.clone().annotation("busy-cpu", "0.1"))?;
    let status = busy.sleeper().wait_reason("busy-cpu")?;
    ensure!(
        status
            .awake_reason
            .detail
            .contains("CPU cores, more than 0.1"),
        "{status:?}"
    );
    ensure!(
        status.counters.sleeps + status.counters.sleeps_aborted == 0,
        "{status:?}"
    );
    drop(busy);
    // The same program, where computing does not count.
    let ignored = node.run(app.annotation("busy-cpu", "0"))?;
    ignored.wait_state("asleep")?;
    Ok(())
}

/// Reads a request, and answers it when it gets the signal USR1.
fn slow_server() -> App {
    let script = "import signal, socket\n\
                  signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n\
                  s = socket.create_server(('', 8080))\n\
                  print('listening', flush=True)\n\
                  c, _ = s.accept()\n\
                  while c.recv(100):\n\
                  \x20   print('read', flush=True)\n\
                  \x20   signal.sigwait({signal.SIGUSR1})\n\
                  \x20   c.sendall(b'done')";
    App::new(["python3", "-c", script])
        .network(Network::Own)
        .annotation("scaledown-duration", "1s")
}

/// A slow server that has read a request of the connection.
fn with_request(node: &Node, app: App) -> Result<(Container, TcpStream)> {
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    let mut client = Client::default().connect(container.address(8080)?)?;
    client.write_all(b"work").context("send a request")?;
    container.stdout()?.wait_for("read")?;
    Ok((container, client))
}

fn read_answer(client: &mut TcpStream) -> Result<()> {
    let mut answer = [0; 4];
    client.read_exact(&mut answer).context("read the answer")?;
    ensure!(&answer == b"done", "{answer:?}");
    Ok(())
}

fn request_without_an_answer_keeps_awake(node: &Node, _: Runtime) -> Result<()> {
    let (container, mut client) = with_request(node, slow_server())?;
    // It may have slept before the request, which has woken it then.
    let before = container.sleeper().wait_reason("unanswered")?;
    let refused = container.sleeper().try_sleep().err().context("it sleeps")?;
    let words = refusal(&refused).context("no answer")?;
    ensure!(words.contains("has no answer yet"), "{words:?}");
    // Twice its idle time without a try.
    thread::sleep(2 * IDLE);
    let status = container.status()?;
    ensure!(status.awake_reason.name == "unanswered", "{status:?}");
    ensure!(tries(&status) == tries(&before), "{status:?}");
    // Before the answer: it may come a while before this thread hears of it.
    let told = Instant::now();
    container.kill(libc::SIGUSR1)?;
    read_answer(&mut client)?;
    container.wait_state("asleep")?;
    let idle = told.elapsed();
    ensure!(idle >= IDLE, "it slept {idle:?} after its answer");
    Ok(())
}

fn request_without_an_answer_is_not_waited_for_without_end(node: &Node, _: Runtime) -> Result<()> {
    let app = slow_server().annotation("answer-wait", "3s");
    let (container, mut client) = with_request(node, app)?;
    container.sleeper().wait_reason("unanswered")?;
    container.wait_state("asleep")?;
    // Late, but not lost.
    container.kill(libc::SIGUSR1)?;
    read_answer(&mut client)
}

fn zero_is_never(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(App::counter().annotation("scaledown-duration", "0"))?;
    container.sleeper().wait_reason("disabled")?;
    let refused = container.sleeper().try_sleep().err().context("it sleeps")?;
    ensure!(refusal(&refused).is_some_and(|words| words.contains("scale-down time is 0")));
    Ok(())
}

fn no_port_no_sleep(node: &Node, _: Runtime) -> Result<()> {
    let app = App::sh("sleep 1000").network(Network::Own);
    let container = node.run(app.annotation("scaledown-duration", "1s"))?;
    container.sleeper().wait_reason("no-ports")?;
    let refused = container.sleeper().try_sleep().err().context("it sleeps")?;
    ensure!(refusal(&refused).is_some_and(|words| words.contains("no port")));
    // Nor where it could not sleep yet.
    let app = App::sh("sleep 1000").network(Network::Own);
    let container = node.run(app.annotation("scaledown-duration", "1h"))?;
    container.sleeper().wait_reason("starting")?;
    let refused = container.sleeper().try_sleep().err().context("it sleeps")?;
    ensure!(refusal(&refused).is_some_and(|words| words.contains("no port")));
    Ok(())
}

/// The answer must not be about a time before it listened.
fn asked_while_it_is_looked_at(node: &Node, _: Runtime) -> Result<()> {
    // Without it the first look takes long enough for the program to listen meanwhile.
    let cache = std::fs::remove_file("/run/criu.kdat");
    ensure!(cache.is_ok() || !std::path::Path::new("/run/criu.kdat").exists());
    let container = node.run(App::counter().annotation("scaledown-duration", "1h"))?;
    container.stdout()?.wait_for("listening")?;
    container.sleeper().try_sleep()?;
    ensure!(container.status()?.ports == [8080]);
    ensure!(visit(container.address(8080)?)? == 1);
    Ok(())
}

/// It would be stopped only to go on, and whoever waits for the answer would wait longer.
fn in_the_middle_of_a_request_it_is_not_stopped(node: &Node, _: Runtime) -> Result<()> {
    let script = "import socket, time\ns = socket.create_server(('', 8080))\n\
                  print('ready', flush=True)\nconnection, _ = s.accept()\n\
                  print('accepted', flush=True)\ntime.sleep(1000)";
    let app = App::new(["python3", "-c", script]).network(Network::Own);
    let app = app
        .annotation("scaledown-duration", "1s")
        .annotation("answer-wait", "0");
    let container = node.run(app)?;
    container.stdout()?.wait_for("ready")?;
    let mut client = Client::default().connect(container.address(8080)?)?;
    client.write_all(b"a request").context("ask")?;
    container.stdout()?.wait_for("accepted")?;
    // Nothing of its state tells that it would have slept.
    let said = "does not fall asleep: a connection has data under way";
    let looked = || {
        let log = node.log_about(container.id(), None);
        log.lines().filter(|line| line.contains(said)).count() >= 2
    };
    let deadline = Instant::now() + PATIENCE;
    while !looked() {
        ensure!(Instant::now() < deadline, "it has not wanted to sleep");
        thread::sleep(IDLE / 10);
    }
    let status = container.status()?;
    ensure!(tries(&status) == 0, "{status:?}");
    Ok(())
}
