//! What a shim costs.

use std::fs;
use std::thread;

use anyhow::{Context, Result};
use podmotion_integration_tests::{App, Client, Node, Runtime, fds, rss_anon_kib};

use super::crowd::SETTLED;
use super::figure::{Figure, Target};
use super::memory::{PORT, counter};
use crate::numbers::Samples;
use crate::report::Progress;

/// Sleeps before its memory is measured: what it keeps of them counts.
const SLEEPS: usize = 5;
/// Resident memory of the best existing peer's shim.
const PEER_MB: f64 = 17.0;

/// Measures size, memory and descriptors.
pub fn measure(node: &Node, progress: &Progress) -> Result<Vec<Figure>> {
    progress.begin("the shim's memory and descriptors");
    let theirs = node.run(App::counter().runtime(Runtime::Runc))?;
    theirs.stdout()?.wait_for("listening")?;
    let their_memory = rss_anon_kib(node.shim_of(theirs.id())?.pid)?;

    let ours = node.run(counter(0))?;
    ours.stdout()?.wait_for("listening")?;
    let shim = node.shim_of(ours.id())?.pid;
    for _ in 0..SLEEPS {
        ours.sleep()?;
        Client::default().get(ours.address(PORT)?, "/")?;
    }
    thread::sleep(SETTLED);
    let awake = (rss_anon_kib(shim)?, descriptors(shim)?);
    ours.sleep()?;
    thread::sleep(SETTLED);
    let asleep = (rss_anon_kib(shim)?, descriptors(shim)?);
    let binary = node.tools().shim(Runtime::Podmotion)?;
    let size = fs::metadata(&binary).with_context(|| format!("look at {}", binary.display()))?;
    progress.end("the shim's memory and descriptors");

    let mb = |kib: u64| kib as f64 * 1024.0 / 1e6;
    let beside = |samples: f64| Samples::from(samples);
    Ok(vec![
        Figure::new("shim asleep, private memory", "MB", mb(asleep.0))
            .beside("io.containerd.runc.v2", beside(mb(their_memory)))
            .target(Target::AtMost(1.0))
            .peer(Some(PEER_MB)),
        Figure::new("shim awake, private memory", "MB", mb(awake.0))
            .beside("io.containerd.runc.v2", beside(mb(their_memory))),
        Figure::new("shim asleep, descriptors", "", asleep.1),
        Figure::new("shim awake, descriptors", "", awake.1),
        Figure::new("shim, size of the program", "MB", size.len() as f64 / 1e6)
            .target(Target::AtMost(6.0)),
    ])
}

fn descriptors(pid: i32) -> Result<f64> {
    Ok(fds(pid)?.values().sum::<usize>() as f64)
}
