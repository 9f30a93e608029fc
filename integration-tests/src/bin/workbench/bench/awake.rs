//! What many sleeps have left in a container that is awake: its throughput beside one that never slept.

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
const READS: usize = 10;
/// What throughput has to be kept.
const KEPT: f64 = 0.99;

/// Measures.
pub fn measure(node: &Node, plan: &Plan, progress: &Progress) -> Result<Vec<Figure>> {
    progress.begin("throughput after many sleeps");
    node.sleep(Depth::Light)?;
    let servers = [
        gate::server(node, Runtime::Podmotion)?,
        gate::server(node, Runtime::Podmotion)?,
    ];
    cycles(&servers[0], plan.sleeps, "/page.html", progress)?;
    let load = Load::new(node, plan.load_seconds)?;
    let served = in_turns(&servers, plan.loads, |server| {
        load.run(server, Kind::Requests)
    })?;
    drop(servers);

    // An allocator that asks for huge pages: what comes back is ordinary pages at first.
    let plain = counter(READ_MB);
    let huge = counter(READ_MB).env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    let mut figures = vec![figure(
        "nginx requests on kept connections",
        "1/s",
        served,
        Target::Keeps(KEPT),
    )];
    for (app, what) in [(plain, "ordinary"), (huge, "huge")] {
        progress.detail(&format!("reading memory, {what} pages"));
        let readers = [reader(node, app.clone())?, reader(node, app)?];
        cycles(&readers[0], plan.sleeps / 10, "/", progress)?;
        let read = in_turns(&readers, READS, read_all)?;
        let name = format!("{READ_MB} MB read, {what} pages");
        figures.push(figure(&name, "MB/s", read, Target::Keeps(KEPT)));
    }
    progress.end(&format!("throughput after {} sleeps", plan.sleeps));
    Ok(figures)
}

fn figure(what: &str, unit: &'static str, samples: [Samples; 2], target: Target) -> Figure {
    let [slept, never] = samples;
    Figure::new(format!("after many sleeps, {what}"), unit, slept)
        .beside("never slept", never)
        .target(target)
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

/// The same of both, several times; who comes first takes turns.
fn in_turns(
    pair: &[Container; 2],
    rounds: usize,
    measure: impl Fn(&Container) -> Result<f64>,
) -> Result<[Samples; 2]> {
    let mut samples = [Samples::default(), Samples::default()];
    for round in 0..rounds {
        for turn in 0..2 {
            let index = (round + turn) % 2;
            samples[index].add(measure(&pair[index])?);
        }
    }
    Ok(samples)
}

/// MB a second.
fn read_all(container: &Container) -> Result<f64> {
    let answer = Client::default().get(container.address(PORT)?, "/mem")?;
    let body: serde_json::Value = serde_json::from_str(&answer.body).context("parse the answer")?;
    ensure!(body["mem_ok"] == true, "{body}");
    let took: Duration = answer.first_byte;
    Ok(f64::from(READ_MB) * f64::from(1 << 20) / 1e6 / took.as_secs_f64())
}
