//! Containers that sleep and wake, one topic to a file.

mod admission;
mod byhand;
mod cgroup;
mod compression;
mod connections;
mod core;
mod crowd;
mod damage;
mod deeper;
mod depth;
mod dryrun;
mod ends;
mod faults;
mod footprint;
mod halted;
mod idle;
mod keepalive;
mod longlife;
mod netlock;
mod pressure;
mod quota;
mod readers;
mod record;
mod refused;
mod signalled;
mod software;
mod stdio;
mod stopped;
mod watched;

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use podmotion_integration_tests::{
    App, Client, Container, ContainerdVersion, PATIENCE, Response, Runtime, Versions, wait_gone,
};

pub(crate) use self::connections::ask;
pub(crate) use self::faults::{SmallDisk, kill_criu};
use crate::{Body, light_trial, trial};

/// Compiles a C program, static, from a file below this package.
fn compile(source: &str, program: &Path) -> Result<()> {
    let status = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-static"])
        .arg("-o")
        .args([program, &Path::new(env!("CARGO_MANIFEST_DIR")).join(source)])
        .status()
        .context("run cc")?;
    ensure!(status.success(), "cc: {source}: {status}");
    Ok(())
}

/// A file's tests, for the default pair of versions.
type Topic = &'static [(&'static str, Body)];

const TOPICS: &[Topic] = &[
    admission::TESTS,
    cgroup::TESTS,
    connections::TESTS,
    core::TESTS,
    dryrun::TESTS,
    ends::TESTS,
    faults::ANY_DEPTH,
    faults::TESTS,
    idle::TESTS,
    keepalive::TESTS,
    netlock::TESTS,
    quota::TESTS,
    software::TESTS,
    stdio::TESTS,
    stopped::TESTS,
];

/// Those that are run once more with containers that sleep light.
const LIGHT: &[Topic] = &[
    admission::TESTS,
    compression::TESTS,
    connections::TESTS,
    core::TESTS,
    crowd::TESTS,
    damage::TESTS,
    deeper::TESTS,
    depth::TESTS,
    ends::TESTS,
    faults::ANY_DEPTH,
    faults::LIGHT,
    footprint::TESTS,
    idle::TESTS,
    keepalive::TESTS,
    longlife::TESTS,
    netlock::TESTS,
    pressure::TESTS,
    quota::LIGHT,
    quota::TESTS,
    readers::TESTS,
    refused::TESTS,
    signalled::TESTS,
    software::TESTS,
    stdio::TESTS,
    watched::TESTS,
];

/// Tests with each containerd: they are about its own client.
const EACH_CONTAINERD: &[Topic] = &[byhand::TESTS];

/// The tests for the default pair of versions.
pub(crate) fn tests() -> impl Iterator<Item = (&'static str, Body)> {
    let topics = TOPICS.iter().chain(LIGHT).copied();
    topics.flatten().copied()
}

/// Shorter ones, for where a cycle takes long.
pub(crate) const SHORT: Topic = &[
    ("sleep::core::twenty_cycles", core::cycles::<5, 20>),
    ("sleep::stdio::unbroken_over_5_sleeps", stdio::unbroken::<5>),
];

pub(crate) fn trials() -> Vec<Trial> {
    let newest = [(TOPICS, Versions::default())];
    let each = ContainerdVersion::ALL.map(|containerd| {
        let runc = Versions::default().runc;
        (EACH_CONTAINERD, Versions { containerd, runc })
    });
    let mut trials = Vec::new();
    for (topics, versions) in newest.into_iter().chain(each) {
        for (name, body) in topics.iter().copied().flatten() {
            trials.push(trial(name, *body, Runtime::Podmotion, versions));
        }
    }
    for (name, body) in LIGHT.iter().copied().flatten() {
        trials.push(light_trial(name, *body, Versions::default()));
    }
    trials.extend(record::trials());
    trials
}

/// A counter that sleeps when it is told to, and not by itself while a test lasts.
fn counter() -> App {
    App::counter().annotation("scaledown-duration", "1h")
}

/// Removes a container and waits until its shim has ended, which comes after the last answer of
/// containerd: what is counted next is without it.
fn drop_with_shim(container: Container) -> Result<()> {
    let shim = container.node().shim_of(container.id())?.pid;
    drop(container);
    wait_gone(shim, PATIENCE)
}

/// The number in a counter's answer, which must be whole and come from our own connection.
fn count(answer: &Response) -> Result<u64> {
    ensure!(answer.status == 200, "{answer:?}");
    let body: serde_json::Value =
        serde_json::from_str(&answer.body).with_context(|| format!("parse {:?}", answer.body))?;
    let local = match answer.local {
        SocketAddr::V4(address) => address.to_string(),
        SocketAddr::V6(address) => format!("[{}]:{}", address.ip(), address.port()),
    };
    ensure!(body["client"] == local, "we are {local}: {body}");
    ensure!(body["mem_ok"] == true, "memory is damaged: {body}");
    body["count"].as_u64().context("no count")
}

/// One request from the node: the number in the answer.
pub(crate) fn visit(address: SocketAddr) -> Result<u64> {
    count(&Client::default().get(address, "/")?)
}

/// Waits for a program whose output cannot be asked: nothing tells when it listens, so this tries.
pub(crate) fn wait_listening(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        ensure!(Instant::now() < deadline, "nobody listens on {address}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
