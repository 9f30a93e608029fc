//! What goes wrong: the container stays healthy, says why, and leaves nothing behind.

mod dump;
mod fake;
mod killed;
mod kills;
mod restore;
mod small_disk;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

pub(super) use fake::{Fake, Mode};
pub(crate) use killed::kill_criu;
pub(crate) use small_disk::SmallDisk;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Client, Container, PATIENCE};

use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    ("sleep::faults::io_uring_stays_awake", dump::io_uring),
    ("sleep::faults::criu_that_exits", dump::exits),
    ("sleep::faults::criu_that_hangs", dump::hangs),
    ("sleep::faults::criu_that_is_missing", dump::missing),
    (
        "sleep::faults::criu_that_writes_half_an_image",
        dump::half_an_image,
    ),
    (
        "sleep::faults::criu_that_outlives_its_shim",
        dump::outlives_its_shim,
    ),
    ("sleep::faults::disk_full", dump::disk_full),
    (
        "sleep::faults::disk_full_at_the_manifest",
        dump::disk_full_at_the_manifest,
    ),
    (
        "sleep::faults::criu_killed_in_the_middle_of_a_dump",
        killed::criu_in_a_dump,
    ),
    (
        "sleep::faults::criu_killed_in_the_middle_of_a_restore",
        killed::criu_in_a_restore,
    ),
    (
        "sleep::faults::lazy_restore_that_fails_is_tried_without",
        restore::second_try,
    ),
    (
        "sleep::faults::restore_that_fails_ends_the_container",
        restore::exit,
    ),
    (
        "sleep::faults::restore_that_fails_starts_it_cold_if_told_to",
        restore::cold_start,
    ),
    (
        "sleep::faults::damaged_images_are_refused",
        restore::damaged_images,
    ),
];

/// Faults that no depth of sleep is safe from.
pub(super) const ANY_DEPTH: &[(&str, Body)] = &[
    ("sleep::faults::shim_killed", killed::shim),
    ("sleep::faults::containerd_restarted", killed::containerd),
];

/// Faults of light sleep.
pub(super) const LIGHT: &[(&str, Body)] =
    &[("sleep::faults::shims_killed_in_every_moment", kills::shims)];

/// One request to [`podmotion_integration_tests::App::counter`]: returns its count.
fn count(container: &Container) -> Result<u64> {
    let answer = Client::default().get(container.address(8080)?, "/")?;
    ensure!(answer.status == 200, "{answer:?}");
    let body: serde_json::Value = serde_json::from_str(&answer.body)?;
    ensure!(body["mem_ok"] == true, "{body}");
    body["count"].as_u64().context("no count")
}

/// Waits until there are no images of a container that is awake. Nothing tells, and it may answer
/// before they are gone.
pub(super) fn wait_no_images(images: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while images.exists() {
        ensure!(Instant::now() < deadline, "images are left");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Where the container's images are.
fn images(container: &Container) -> PathBuf {
    Path::new("/var/lib/podmotion/checkpoints").join(container.id())
}
