//! Real servers, asleep and awake again under load from clients.
//!
//! Each test is the same story told of another server: clients come while it is asked to sleep, it
//! sleeps, a client of before or a crowd of new ones wakes it, and every single request has been
//! answered, once, by the process that was started at first.

mod http1;
mod http2;
mod nginx;
mod postgres;
mod redis;
mod resp;
mod web;

use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use podmotion_integration_tests::{
    App, Container, Depth, Image, Network, Runtime, refusal, soak, was_starved,
};

use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    ("sleep::software::nginx", nginx::nginx),
    ("sleep::software::redis_million_keys", redis::million_keys),
    (
        "sleep::software::postgres_open_transaction",
        postgres::open_transaction,
    ),
    ("sleep::software::node_js", web::node_js),
    ("sleep::software::go_collecting", web::go),
    ("sleep::software::jvm_g1", web::jvm_g1),
    ("sleep::software::jvm_zgc", web::jvm_zgc),
    ("sleep::software::rust_tokio", web::rust_tokio),
    ("sleep::software::erlang", web::erlang),
    (
        "sleep::software::python_processes_and_descriptors",
        web::python_processes_and_descriptors,
    ),
    (
        "sleep::software::python_multiprocessing",
        web::python_multiprocessing,
    ),
];

/// Clients at once, and connections that each of them makes, one after the other.
const CROWD: usize = 4;
const VISITS: usize = 2;
const PORT: u16 = 8080;

/// How often a container sleeps. A checkpoint takes long: `cargo xtask test --soak` has as many of them.
fn rounds(depth: Depth) -> usize {
    match depth {
        Depth::Deep if !soak() => 10,
        Depth::Light | Depth::Deep => 50,
    }
}

/// Sleeps and wakes `container`. `crowd` is one of several clients that come at once, `regular` one
/// that keeps its connection. Which of them wakes it changes from cycle to cycle.
fn cycles(
    container: &Container,
    crowd: impl Fn() -> Result<()> + Sync,
    mut regular: impl FnMut() -> Result<()>,
) -> Result<()> {
    regular().context("before any sleep")?;
    let rounds = rounds(container.node().depth());
    // Tries that the machine had no time for.
    let mut starved = 0;
    for cycle in 0..rounds {
        let context = || format!("cycle {cycle}");
        let asked = all_at_once(&crowd, || {
            let asked = container.sleeper().try_sleep();
            if asked.is_ok() {
                // Requests that it was working on go on when it does; no packet says so.
                container.wake()?;
            }
            anyhow::Ok(asked)
        })
        .with_context(context)
        .context("while it is asked to sleep")??;
        if let Err(error) = asked {
            refusal(&error).with_context(|| format!("no refusal: {error:#}"))?;
            starved += u64::from(was_starved(&error));
        }
        starved += container.sleeper().sleep_at_last().with_context(context)?;
        let status = container.wait_state("asleep").with_context(context)?;
        let left: Vec<_> = container.pids()?;
        let there = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
        let light = container.node().depth() == Depth::Light;
        ensure!(
            status.memory_freed_bytes > 0 && left.iter().all(|pid| there(pid) == light),
            "asleep with processes {left:?}: {status:?}"
        );
        if cycle % 2 == 0 {
            regular().with_context(context).context("as the first")?;
            all_at_once(&crowd, || ()).with_context(context)?;
        } else {
            all_at_once(&crowd, || ())
                .with_context(context)
                .context("as the first")?;
            regular().with_context(context)?;
        }
    }
    let status = container.status()?;
    let counters = status.counters.clone().unwrap_or_default();
    ensure!(
        counters.sleeps >= rounds as u64
            && counters.wakes >= rounds as u64
            && counters.sleeps_failed == starved
            && counters.wakes_failed == 0
            && counters.cold_starts == 0
            && status.last_error.is_empty(),
        "{status:?}"
    );
    Ok(())
}

/// Runs `crowd` in [`CROWD`] threads, and `meanwhile` in this one.
fn all_at_once<T>(
    crowd: &(impl Fn() -> Result<()> + Sync),
    meanwhile: impl FnOnce() -> T,
) -> Result<T> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CROWD).map(|_| scope.spawn(crowd)).collect();
        let result = meanwhile();
        for client in clients {
            client
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a client thread panicked")))?;
        }
        Ok(result)
    })
}

fn server<const N: usize>(runtime: Runtime, args: [&str; N]) -> App {
    App::new(args)
        .image(Image::Software)
        .network(Network::Own)
        .runtime(runtime)
}
