//! Checkpoints that cannot be made.

use std::thread;

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{
    App, Client, Container, Exec, Network, Node, Runtime, Status, refusal,
};

use super::fake::{Fake, Mode};
use super::killed::kill_shim;
use super::small_disk::SmallDisk;
use super::{count, images, wait_no_images};

/// Short, so that tries follow one another.
const QUICK: &str = "checkpoint.backoff_initial = \"100ms\"\ncheckpoint.dump_timeout = \"1s\"\n";

/// A counter that would sleep at once.
fn restless(node: &Node) -> Result<Container> {
    let container = node.run(App::counter().annotation("scaledown-duration", "100ms"))?;
    container.stdout()?.wait_for("listening")?;
    Ok(container)
}

/// Waits until so many checkpoints have failed and the next one is put off; says why.
fn wait_failures(container: &Container, failures: u64) -> Result<Status> {
    container
        .sleeper()
        .wait_until(&format!("back-off after {failures} failures"), |status| {
            status.counters.sleeps_failed >= failures && status.awake_reason.name == "back-off"
        })
}

/// The time to the next try, as the reason says it.
fn delay(status: &Status) -> Result<String> {
    let (_, rest) = status
        .awake_reason
        .detail
        .split_once("the next try comes ")
        .with_context(|| format!("no delay in {:?}", status.awake_reason))?;
    Ok(rest.split(' ').next().unwrap_or_default().to_owned())
}

/// It is awake, answers, and has no images.
fn ensure_healthy(container: &Container, requests: u64) -> Result<()> {
    ensure!(count(container)? == requests);
    wait_no_images(&images(container))
}

/// CRIU fails in some way, again and again, and then works again.
fn refused(node: &Node, mode: Mode, failures: u64, why: &str) -> Result<()> {
    let fake = Fake::new(node, QUICK)?;
    let container = restless(node)?;
    container.wait_state("asleep")?;
    fake.set(mode)?;
    ensure!(count(&container)? == 1);
    let status = wait_failures(&container, failures)?;
    for said in [&status.awake_reason.detail, &status.last_error] {
        ensure!(said.contains(why), "not {why:?}: {said}");
    }
    ensure!(status.state == "running", "{status:?}");
    ensure_healthy(&container, 2)?;
    fake.set(Mode::Real)?;
    let status = container.wait_state("asleep")?;
    ensure!(status.last_error.is_empty(), "{status:?}");
    ensure!(count(&container)? == 3);
    Ok(())
}

pub(super) fn exits(node: &Node, _: Runtime) -> Result<()> {
    refused(node, Mode::ExitDump, 2, "Error (fake/cr.c:7)")
}

pub(super) fn hangs(node: &Node, _: Runtime) -> Result<()> {
    refused(node, Mode::HangDump, 1, "took longer than 1s")
}

pub(super) fn half_an_image(node: &Node, _: Runtime) -> Result<()> {
    refused(node, Mode::HalfDump, 2, "ended without an answer")
}

/// What it still writes then is removed too, and nothing is taken away under its hands.
pub(super) fn outlives_its_shim(node: &Node, _: Runtime) -> Result<()> {
    let fake = Fake::new(node, "")?;
    let container = node.run(App::counter())?;
    container.stdout()?.wait_for("listening")?;
    fake.set(Mode::LateDump)?;
    let images = images(&container);
    thread::scope(|scope| {
        // Fails with the shim.
        scope.spawn(|| container.sleep());
        fake.wait_call("Dump")?;
        kill_shim(node, &container)
    })?;
    drop(container);
    fake.wait_call("End")?;
    let calls = fake.calls()?;
    ensure!(calls == ["Dump", "End"], "{calls:?}");
    wait_no_images(&images)?;
    Ok(())
}

pub(super) fn missing(node: &Node, _: Runtime) -> Result<()> {
    let fake = Fake::new(node, QUICK)?;
    fake.remove()?;
    let container = restless(node)?;
    let status = container.sleeper().wait_reason("not-checkpointable")?;
    ensure!(
        status.awake_reason.detail.contains("no CRIU at"),
        "{status:?}"
    );
    ensure_healthy(&container, 1)?;
    fake.put_back()?;
    container.wait_state("asleep")?;
    ensure!(count(&container)? == 2);
    // It is awake when CRIU goes: without one it could not be woken.
    let busy = container.exec(&Exec::sh("exec sleep 1000"))?;
    busy.start()?;
    fake.remove()?;
    drop(busy);
    let status = wait_failures(&container, 1)?;
    ensure!(status.last_error.contains("no CRIU at"), "{status:?}");
    ensure_healthy(&container, 3)?;
    fake.put_back()?;
    container.wait_state("asleep")?;
    ensure!(count(&container)? == 4);
    Ok(())
}

pub(super) fn io_uring(node: &Node, _: Runtime) -> Result<()> {
    let _settings = node.set(QUICK)?;
    let app = App::new(["/apps/iouring"])
        .network(Network::Own)
        .annotation("scaledown-duration", "100ms");
    let container = node.run(app)?;
    let first = wait_failures(&container, 1)?;
    for word in ["io_uring", "Error (criu/"] {
        ensure!(first.awake_reason.detail.contains(word), "{first:?}");
    }
    let third = wait_failures(&container, first.counters.sleeps_failed + 2)?;
    let (first, third) = (delay(&first)?, delay(&third)?);
    ensure!(
        third != first,
        "the back-off does not grow: {first}, {third}"
    );
    let answer = Client::default().get(container.address(8080)?, "/")?;
    ensure!(answer.status == 200, "{answer:?}");
    wait_no_images(&images(&container))?;
    Ok(())
}

pub(super) fn disk_full(node: &Node, _: Runtime) -> Result<()> {
    let disk = SmallDisk::new(node, "size=16m", QUICK)?;
    let app = App::counter()
        .mem_mb(40)
        .annotation("scaledown-duration", "100ms");
    let container = node.run(app)?;
    container.stdout()?.wait_for("listening")?;
    let status = wait_failures(&container, 2)?;
    ensure!(
        status.last_error.contains("No space left") && status.state == "running",
        "{status:?}"
    );
    wait_no_images(&disk.folder().join(container.id()))?;
    ensure!(count(&container)? == 1);
    disk.mount("remount,size=200m")?;
    container.wait_state("asleep")?;
    ensure!(count(&container)? == 2);
    Ok(())
}

/// The disk takes all of CRIU's images, but nothing more. CRIU has succeeded by then; the container
/// must not be gone with a checkpoint that nobody can use.
pub(super) fn disk_full_at_the_manifest(node: &Node, _: Runtime) -> Result<()> {
    let disk = SmallDisk::new(node, "nr_inodes=100000", QUICK)?;
    let container = node.run(App::counter())?;
    container.stdout()?.wait_for("listening")?;
    ensure!(count(&container)? == 1);
    container.sleep()?;
    // The manifest is one of these, and CRIU's statistics, which come last, another.
    let room = disk.files()? - 2;
    ensure!(count(&container)? == 2);
    wait_no_images(&disk.folder().join(container.id()))?;
    disk.mount(&format!("remount,nr_inodes={room}"))?;
    let Err(refused) = container.sleep() else {
        bail!("it sleeps without a manifest");
    };
    let told = refusal(&refused).context("no answer")?;
    let status = container.wait_state("running")?;
    for words in ["the container runs on", "manifest.json", "No space left"] {
        for said in [&told, &status.last_error] {
            ensure!(said.contains(words), "not {words:?}: {said}");
        }
    }
    ensure!(count(&container)? == 3);
    disk.mount("remount,nr_inodes=100000")?;
    container.sleep()?;
    ensure!(count(&container)? == 4);
    Ok(())
}
