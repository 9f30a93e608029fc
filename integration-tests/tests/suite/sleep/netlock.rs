//! The kernel's network lock (rtnl) is one for the whole machine, and on a busy node somebody holds it for seconds.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use podmotion_integration_tests::{App, Member, Node, Runtime};

use super::{compile, counter, visit, wait_listening};
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "sleep::netlock::sleeps_and_wakes_while_it_is_held",
        sleeps_and_wakes_while_it_is_held,
    ),
    (
        "sleep::netlock::a_first_sleep_that_waits_for_it_stops_nobody",
        a_first_sleep_that_waits_for_it_stops_nobody,
    ),
];

/// Somebody who has the lock.
struct Holder(Child);

impl Holder {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir().context("create a folder")?;
        let program = folder.path().join("netlock");
        compile("tests/suite/sleep/netlock.c", &program)?;
        let mut command = Command::new(&program);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = Self(child.spawn().context("start netlock")?);
        let said = holder.0.stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line)?;
        ensure!(line == "held\n", "netlock said {line:?}");
        Ok(holder)
    }

    fn let_go(mut self) -> Result<()> {
        ensure!(self.0.try_wait()?.is_none(), "it had let go");
        drop(self.0.stdin.take());
        let status = self.0.wait()?;
        ensure!(status.success(), "netlock: {status}");
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It is gone, or goes by this.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sleeps_and_wakes_while_it_is_held(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(counter())?;
    container.stdout()?.wait_for("listening")?;
    let address = container.address(8080)?;
    // What is kept from one sleep to the next is made by the first.
    container.sleep()?;
    ensure!(visit(address)? == 1);
    container.sleeper().wait_whole()?;
    let holder = Holder::start()?;
    for round in 2..5 {
        container.sleep()?;
        ensure!(visit(address)? == round);
        container.sleeper().wait_whole()?;
    }
    holder.let_go()
}

/// Of two containers of a pod one is on its way to sleep: the other one, and who asks for either, notice nothing.
fn a_first_sleep_that_waits_for_it_stops_nobody(node: &Node, _: Runtime) -> Result<()> {
    let pod = node.pod(Runtime::Podmotion)?;
    let app =
        |idle| App::new(["python3", "/apps/counter.py"]).annotation("scaledown-duration", idle);
    let first = pod.start(Member::new("first", app("1h")))?.sleeper();
    let second = pod.start(Member::new("second", app("1s").env("PORT", "8081")))?;
    let second = second.sleeper();
    for port in [8080, 8081] {
        wait_listening(pod.address(port)?)?;
    }
    let holder = Holder::start()?;
    thread::scope(|scope| {
        let asleep = scope.spawn(|| first.sleep());
        for sleeper in [&first, &second] {
            sleeper.wait_state("falling-asleep")?;
        }
        for port in [8080, 8081] {
            ensure!(visit(pod.address(port)?)? == 1);
        }
        holder.let_go()?;
        asleep.join().map_err(|_| anyhow!("the sleep panicked"))?
    })?;
    ensure!(visit(pod.address(8080)?)? == 2);
    Ok(())
}
