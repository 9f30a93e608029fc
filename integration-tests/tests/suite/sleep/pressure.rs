//! What becomes of sleepers when the node runs short of memory or disk.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{
    App, Container, Depth, Node, PATIENCE, Runtime, refusal, wait_gone,
};

use super::faults::{SmallDisk, wait_no_images};
use super::visit;
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "sleep::pressure::light_becomes_deep_where_memory_is_short",
        light_becomes_deep_where_memory_is_short,
    ),
    (
        "sleep::pressure::light_stays_light_where_memory_is_not_short",
        light_stays_light_where_memory_is_not_short,
    ),
    (
        "sleep::pressure::nothing_is_written_to_a_disk_that_is_short",
        nothing_is_written_to_a_disk_that_is_short,
    ),
    (
        "sleep::pressure::no_checkpoint_on_a_disk_that_is_short",
        no_checkpoint_on_a_disk_that_is_short,
    ),
];

/// A counter that sleeps when it is told to, light at first and deep after `after`.
fn counter(node: &Node, after: &str) -> Result<Container> {
    ensure!(node.depth() == Depth::Light);
    let app = App::counter()
        .mem_mb(40)
        .annotation("scaledown-duration", "1h")
        .annotation("deep-sleep-after", after);
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    Ok(container)
}

fn light_becomes_deep_where_memory_is_short(node: &Node, _: Runtime) -> Result<()> {
    let _settings = node.set("pressure.min_memory = \"100%\"\n")?;
    let container = counter(node, "1h")?;
    let stays = counter(node, "never")?;
    stays.sleep()?;
    let pid = container.pid()?.try_into()?;
    container.sleep()?;
    let status = container
        .sleeper()
        .wait_until("deep sleep", |status| status.depth == "deep")?;
    ensure!(status.last_sleep.deepened == "pressure", "{status:?}");
    wait_gone(pid, PATIENCE)?;
    ensure!(visit(container.address(8080)?)? == 1);
    let stays = stays.status()?;
    ensure!(stays.depth == "light", "{stays:?}");
    Ok(())
}

fn light_stays_light_where_memory_is_not_short(node: &Node, _: Runtime) -> Result<()> {
    let _settings = node.set("pressure.min_memory = \"1B\"\n")?;
    let container = counter(node, "1h")?;
    container.sleep()?;
    // Falls asleep later, and is deep at a time when the first one is not.
    let later = counter(node, "500ms")?;
    later.sleep()?;
    let status = later
        .sleeper()
        .wait_until("deep sleep", |status| status.depth == "deep")?;
    ensure!(status.last_sleep.deepened == "time", "{status:?}");
    let status = container.status()?;
    ensure!(
        status.depth == "light" && status.last_sleep.deepened.is_empty(),
        "{status:?}"
    );
    Ok(())
}

/// The file with the memory of a container.
fn image(disk: &SmallDisk, container: &Container) -> PathBuf {
    let directory = format!("{}.memory", container.id());
    disk.folder().join(directory).join("pages.img")
}

fn nothing_is_written_to_a_disk_that_is_short(node: &Node, _: Runtime) -> Result<()> {
    let disk = SmallDisk::new(node, "size=200m", "pressure.min_disk = \"50%\"\n")?;
    let container = counter(node, "never")?;
    let address = container.address(8080)?;
    container.sleep()?;
    ensure!(visit(address)? == 1);
    container
        .sleeper()
        .wait_until("all of its memory", |status| {
            status.state == "running" && status.awake_reason.is_some()
        })?;
    ensure!(image(&disk, &container).exists());
    disk.mount("remount,size=60m")?;
    let Err(refused) = container.sleeper().try_sleep() else {
        bail!("it sleeps");
    };
    let told = refusal(&refused).context("no answer")?;
    ensure!(told.contains("less than 50% ("), "{told}");
    // Awake it does not need what the last sleep has left.
    disk.wait_emptied(1 << 20)?;
    ensure!(!image(&disk, &container).exists());
    ensure!(visit(address)? == 2);
    disk.mount("remount,size=200m")?;
    container.sleep()?;
    ensure!(visit(address)? == 3);
    Ok(())
}

fn no_checkpoint_on_a_disk_that_is_short(node: &Node, _: Runtime) -> Result<()> {
    // Room for one image, not for another beside it.
    let disk = SmallDisk::new(node, "size=160m", "pressure.min_disk = \"60%\"\n")?;
    let container = counter(node, "100ms")?;
    container.sleep()?;
    let status = container
        .sleeper()
        .wait_until("a checkpoint that is not made", |status| {
            status.counters.sleeps_failed == 1
        })?;
    ensure!(
        status.depth == "light" && status.last_error.contains("less than 60% ("),
        "{status:?}"
    );
    wait_no_images(&disk.folder().join(container.id()))?;
    ensure!(visit(container.address(8080)?)? == 1);
    Ok(())
}
