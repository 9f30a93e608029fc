//! The process that the cluster lives in.

use std::time::Instant;

use anyhow::{Context, Result};
use podmotion_integration_tests::{Cluster, Image, Node, Versions};

use super::folder::Folder;
use super::{READY, link};
use crate::numbers::time;
use crate::stage;

/// Not the tests' settings, under which a container is deep asleep at once: a person sees both depths.
const SETTINGS: &str = "sleep.deep_sleep_after = \"1m\"";

/// Runs a cluster until SIGTERM. Progress goes to standard output until all is up, trouble to standard error.
pub fn run(nodes: u8, caller: u32, folder: &Folder) -> Result<()> {
    // A Ctrl-C that ends whoever waits for it must not end it.
    rustix::process::setsid().context("leave the caller's terminal")?;
    let lock = folder.hold()?;
    let stage = stage::enter()?;
    let served = start(nodes, caller, folder).map(|cluster| {
        println!("{READY}");
        stage.wait_for_interrupt();
        drop(cluster);
    });
    stage.leave()?;
    drop(lock);
    served
}

fn start(nodes: u8, caller: u32, folder: &Folder) -> Result<Cluster> {
    let versions = Versions::default();
    let node = step(&format!("{versions} starts"), || {
        Node::start_with(versions, SETTINGS)
    })?;
    let cluster = step("a Kubernetes of node-1 starts", || Cluster::start(node))?;
    if nodes > 1 {
        step("node-2 joins", || {
            cluster.add_node(SETTINGS, &[Image::Busybox, Image::Apps])?;
            Ok(())
        })?;
    }
    link::create(caller)?;
    folder.fill(&cluster)?;
    Ok(cluster)
}

fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let done = work().with_context(|| what.to_owned())?;
    println!("ok {:>8}  {what}", time(started.elapsed()));
    Ok(done)
}
