//! What a checkpoint after light sleep takes from the image of moved memory, and what it costs.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{
    App, Client, Container, Depth, Network, Node, Runtime, Status, memory_usage, set_memory_limit,
};

use super::{compile, visit};
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "sleep::deeper::memory_of_every_kind_comes_back_at_once",
        |node, _| memory_of_every_kind_comes_back(node, Processes::Several, "1TiB"),
    ),
    (
        "sleep::deeper::memory_of_every_kind_comes_back_when_touched",
        |node, _| memory_of_every_kind_comes_back(node, Processes::One, "0"),
    ),
    // CRIU 4.2 loses some of them when it restores them lazily.
    (
        "sleep::deeper::processes_that_share_memory_all_come_back",
        |node, _| memory_of_every_kind_comes_back(node, Processes::Several, "0"),
    ),
    (
        "sleep::deeper::a_checkpoint_needs_no_memory",
        a_checkpoint_needs_no_memory,
    ),
    (
        "sleep::deeper::a_damaged_image_makes_no_checkpoint",
        a_damaged_image_makes_no_checkpoint,
    ),
];

/// Sleeps of each kind.
const CYCLES: u64 = 5;

fn mosaic(node: &Node) -> Result<PathBuf> {
    let program = node.folder().join("mosaic");
    compile("tests/suite/sleep/mosaic.c", &program)?;
    Ok(program)
}

fn wait_deep(container: &Container) -> Result<Status> {
    container.sleeper().wait_until("deep sleep", |status| {
        ensure_none_failed(status).is_err() || status.depth == "deep"
    })
}

fn ensure_none_failed(status: &Status) -> Result<()> {
    ensure!(status.counters.sleeps_failed == 0, "{status:?}");
    Ok(())
}

/// How many processes a test is about.
#[derive(PartialEq)]
enum Processes {
    One,
    Several,
}

fn memory_of_every_kind_comes_back(
    node: &Node,
    processes: Processes,
    threshold: &str,
) -> Result<()> {
    ensure!(node.depth() == Depth::Light);
    let _settings = node.set(&format!("checkpoint.lazy_threshold = \"{threshold}\"\n"))?;
    let app = App::new(["/mosaic"])
        .network(Network::Own)
        .mount(mosaic(node)?, "/mosaic")
        .annotation("scaledown-duration", "1h")
        .annotation("deep-sleep-after", "100ms");
    let lazy = processes == Processes::One;
    let app = if lazy { app.env("ALONE", "1") } else { app };
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    let address = container.address(8080)?;
    for cycle in 1..=CYCLES {
        container.sleep()?;
        let deep = wait_deep(&container)?;
        ensure_none_failed(&deep)?;
        let answer = Client::default().get(address, "/")?;
        ensure!(answer.body == "whole", "in cycle {cycle}: {answer:?}");
        let awake = container
            .sleeper()
            .wait_until("all of its memory", |status| {
                status.state == "running" && status.awake_reason.is_some()
            })?;
        ensure!(
            awake.last_wake.depth == "deep" && awake.last_wake.lazy == lazy,
            "{awake:?}"
        );
    }
    Ok(())
}

/// A counter with much memory, deep some seconds after it fell asleep.
fn large(node: &Node, after: &str) -> Result<Container> {
    ensure!(node.depth() == Depth::Light);
    let app = App::counter()
        .mem_mb(200)
        .annotation("scaledown-duration", "1h")
        .annotation("deep-sleep-after", after);
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    Ok(container)
}

fn a_checkpoint_needs_no_memory(node: &Node, _: Runtime) -> Result<()> {
    let container = large(node, "5s")?;
    container.sleep()?;
    let group = container.cgroup()?;
    // Nothing that has left may come back.
    set_memory_limit(&group, Some(memory_usage(&group)? + (16 << 20)))?;
    let light = container.status()?;
    ensure!(
        light.depth == "light" && light.state == "asleep",
        "the limit came late: {light:?}"
    );
    let deep = wait_deep(&container)?;
    ensure_none_failed(&deep)?;
    ensure!(deep.last_sleep.memory_bytes > 200 << 20, "{deep:?}");
    set_memory_limit(&group, None)?;
    ensure!(visit(container.address(8080)?)? == 1);
    Ok(())
}

fn a_damaged_image_makes_no_checkpoint(node: &Node, _: Runtime) -> Result<()> {
    let container = large(node, "5s")?;
    container.sleep()?;
    let directory = format!("/var/lib/podmotion/checkpoints/{}.memory", container.id());
    let pages = Path::new(&directory).join("pages.img");
    // In its place: to write all of it anew takes longer than it stays light where the disk is slow.
    let image = OpenOptions::new().read(true).write(true).open(&pages);
    let image = image.context("open the image")?;
    let last = image.metadata()?.len() - 1;
    let mut byte = [0];
    image
        .read_exact_at(&mut byte, last)
        .context("read the image")?;
    image
        .write_all_at(&[byte[0] ^ 0x55], last)
        .context("damage the image")?;
    let light = container.status()?;
    ensure!(light.state == "asleep", "the damage came late: {light:?}");
    container
        .sleeper()
        .wait_until("a checkpoint that is not made, and why", |status| {
            status.counters.sleeps_failed > 0 && status.last_error.contains("checksum")
        })?;
    let checkpoint = Path::new("/var/lib/podmotion/checkpoints").join(container.id());
    ensure!(
        !checkpoint.join("manifest.json").exists(),
        "there is a checkpoint"
    );
    Ok(())
}
