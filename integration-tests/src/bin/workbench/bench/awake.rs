//! What many sleeps have left in a container that is awake: its throughput before and after them, as a share of that of one
//! that never slept, in the same moment. Two containers of the same program differ by more than what is looked for, and so
//! does the same one from one minute to the next.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{App, Client, Container, Depth, Node, Runtime};

use super::Plan;
use super::figure::{Figure, Target};
use super::gate;
use super::load::{Kind, Load};
use super::memory::{PORT, counter};
use crate::numbers::Samples;
use crate::report::Progress;

/// What is read from one end to the other, in MiB.
const READ_MB: u32 = 200;
/// How often it is read.
const READS: usize = 40;
/// So many times as many loads as for the comparison of runtimes: less is looked for here.
const LOADS: usize = 6;
/// Seconds of load at a time: both containers have their turn within the same moment.
const LOAD_SECONDS: u32 = 1;
/// What throughput has to be kept.
const KEPT: f64 = 0.99;

/// Measures.
pub fn measure(node: &Node, plan: &Plan, progress: &Progress) -> Result<Vec<Figure>> {
    progress.begin("throughput after many sleeps");
    node.sleep(Depth::Light)?;
    let load = Load::new(node, LOAD_SECONDS)?;
    let servers = [
        gate::server(node, Runtime::Podmotion)?,
        gate::server(node, Runtime::Podmotion)?,
    ];
    let rounds = LOADS * plan.loads;
    let requests = |server: &Container| load.run(server, Kind::Requests);
    let before = in_turns(&servers, rounds, requests)?;
    cycles(&servers[0], plan.sleeps, "/page.html", progress)?;
    let after = in_turns(&servers, rounds, requests)?;
    let what = "nginx requests on kept connections";
    let mut figures = vec![figure(what, before, after)];
    drop(servers);

    // An allocator that asks for huge pages: what comes back is ordinary pages at first.
    let plain = counter(READ_MB);
    let huge = counter(READ_MB).env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    for (app, what) in [(plain, "ordinary"), (huge, "huge")] {
        progress.detail(&format!("reading memory, {what} pages"));
        let readers = [reader(node, app.clone())?, reader(node, app)?];
        let before = in_turns(&readers, READS, read_all)?;
        cycles(&readers[0], plan.sleeps / 10, "/", progress)?;
        let after = in_turns(&readers, READS, read_all)?;
        let what = format!("{READ_MB} MB read, {what} pages");
        figures.push(figure(&what, before, after));
    }
    progress.end(&format!("throughput after {} sleeps", plan.sleeps));
    Ok(figures)
}

/// What the one that slept does of what the other one does.
fn figure(what: &str, before: Samples, after: Samples) -> Figure {
    let name = format!("after many sleeps, {what}");
    Figure::new(name, "% of one that never slept", after)
        .beside("before them", before)
        .target(Target::Keeps(KEPT))
}

fn reader(node: &Node, app: App) -> Result<Container> {
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    Ok(container)
}

/// Sleeps and wakes, and waits until all memory is back.
fn cycles(container: &Container, count: u64, path: &str, progress: &Progress) -> Result<()> {
    for number in 0..count {
        progress.detail(&format!("sleep {} of {count}", number + 1));
        container.sleep()?;
        let answer = Client::default().get(container.address(PORT)?, path)?;
        ensure!(answer.status == 200, "{answer:?}");
    }
    container
        .sleeper()
        .wait_until("memory back", |status| {
            status.state == "running" && status.awake_reason.is_some()
        })
        .map(drop)
}

/// The same of both, several times: what the first one does in percent of the second. Who comes first takes turns.
fn in_turns(
    pair: &[Container; 2],
    rounds: usize,
    measure: impl Fn(&Container) -> Result<f64>,
) -> Result<Samples> {
    let mut shares = Samples::default();
    for round in 0..rounds {
        let mut rates = [0.0; 2];
        for turn in 0..2 {
            let index = (round + turn) % 2;
            rates[index] = measure(&pair[index])?;
        }
        shares.add(rates[0] / rates[1] * 100.0);
    }
    Ok(shares)
}

/// MB a second.
fn read_all(container: &Container) -> Result<f64> {
    let answer = Client::default().get(container.address(PORT)?, "/mem")?;
    let body: serde_json::Value = serde_json::from_str(&answer.body).context("parse the answer")?;
    ensure!(body["mem_ok"] == true, "{body}");
    let took: Duration = answer.first_byte;
    Ok(f64::from(READ_MB) * f64::from(1 << 20) / 1e6 / took.as_secs_f64())
}
