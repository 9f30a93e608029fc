//! What a container in light sleep keeps beside its own processes.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{
    Container, Depth, Node, PATIENCE, Runtime, own_processes, rss_anon_kib, status_number,
};

use super::{counter, visit};
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[(
    "sleep::footprint::a_sleeping_server_keeps_a_small_shim",
    a_sleeping_server_keeps_a_small_shim,
)];

/// Private memory and page tables of shim and keeper, in KiB: 570 were seen, and 920 before what the last wake had needed
/// was given back.
const MOST_KIB: u64 = 700;

fn a_sleeping_server_keeps_a_small_shim(node: &Node, _: Runtime) -> Result<()> {
    ensure!(node.depth() == Depth::Light);
    let container = node.run(counter().annotation("deep-sleep-after", "never"))?;
    container.stdout()?.wait_for("listening")?;
    // Of the second sleep on there is a working set, and of the third an image to compare with.
    for number in 1..=3 {
        ensure!(visit(container.address(8080)?)? == number);
        container.sleep()?;
    }
    // Threads end, and memory is given back, a while after they were last needed, and nothing tells.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let kib = kept_kib(node, &container)?;
        if kib <= MOST_KIB {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{kib} KiB are kept");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Private memory and page tables of a sleeping container's shim and its keeper, in KiB.
fn kept_kib(node: &Node, container: &Container) -> Result<u64> {
    let shim = node.shim_of(container.id())?.pid;
    let mut keeper = None;
    for process in own_processes()? {
        if process.is_keeper() && i32::try_from(status_number(process.pid, "PPid")?)? == shim {
            keeper = Some(process.pid);
        }
    }
    let keeper = keeper.context("nobody keeps the descriptors")?;
    let mut kib = 0;
    for pid in [shim, keeper] {
        kib += rss_anon_kib(pid)? + status_number(pid, "VmPTE")?;
    }
    Ok(kib)
}
