//! Dry run: nothing sleeps, and it is said whether a checkpoint would be possible.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{
    App, Client, Container, Network, Node, Runtime, Status, refusal,
};

use super::connections::ask;
use super::counter;
use super::faults::wait_no_images;
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "sleep::dryrun::a_possible_checkpoint_is_measured_and_removed",
        a_possible_checkpoint_is_measured_and_removed,
    ),
    (
        "sleep::dryrun::a_checkpoint_that_is_not_possible_says_why",
        a_checkpoint_that_is_not_possible_says_why,
    ),
];

fn dry(app: App) -> App {
    app.annotation("dry-run", "true")
}

/// It runs on as it was, and leaves nothing.
fn ensure_not_asleep(container: &Container, status: &Status) -> Result<()> {
    ensure!(
        status.state == "running"
            && status.counters.sleeps == 0
            && status.counters.sleeps_failed == 0,
        "{status:?}"
    );
    wait_no_images(&Path::new("/var/lib/podmotion/checkpoints").join(container.id()))
}

fn a_possible_checkpoint_is_measured_and_removed(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(dry(counter().mem_mb(40)))?;
    container.stdout()?.wait_for("listening")?;
    let pid = container.pid()?;
    let kept = Client::default().connect(container.address(8080)?)?;
    ensure!(ask(&kept, "/")?.contains("\"count\": 1"));
    // What is not acknowledged keeps a container awake.
    rustix::net::sockopt::set_tcp_quickack(&kept, true).context("acknowledge")?;
    let Err(refused) = container.sleep() else {
        bail!("it sleeps");
    };
    let told = refusal(&refused).context("no answer")?;
    ensure!(told.contains("this is a dry run"), "{told}");
    let status = container.wait_state("running")?;
    let last = &status.rehearsal;
    ensure!(
        last.error.is_empty() && last.took_us > 0 && last.image_bytes > 40 << 20,
        "{status:?}"
    );
    ensure_not_asleep(&container, &status)?;
    // The same process, the same memory, the same connection.
    ensure!(container.pid()? == pid);
    let all = ask(&kept, "/mem")?;
    ensure!(all.contains("\"mem_ok\": true"), "{all}");
    ensure!(ask(&kept, "/")?.contains("\"count\": 2"));
    Ok(())
}

fn a_checkpoint_that_is_not_possible_says_why(node: &Node, _: Runtime) -> Result<()> {
    let app = App::new(["/apps/iouring"])
        .network(Network::Own)
        .annotation("scaledown-duration", "100ms");
    let container = node.run(dry(app))?;
    // By itself, once it is idle.
    let first = container.sleeper().wait_until("a rehearsal", |status| {
        status.rehearsal.is_some() && status.awake_reason.name == "dry-run"
    })?;
    ensure_not_asleep(&container, &first)?;
    for word in ["io_uring", "Error (criu/"] {
        ensure!(first.rehearsal.error.contains(word), "{first:?}");
    }
    let answer = Client::default().get(container.address(8080)?, "/")?;
    ensure!(answer.status == 200, "{answer:?}");
    // The next one by itself is an hour away, whoever asks gets one at once.
    let idle = container.sleeper().wait_reason("dry-run")?;
    ensure!(idle.rehearsal == first.rehearsal, "{idle:?}");
    let Err(refused) = container.sleep() else {
        bail!("it sleeps");
    };
    let told = refusal(&refused).context("no answer")?;
    ensure!(told.contains("io_uring"), "{told}");
    let second = container.status()?;
    ensure!(
        second.rehearsal.at_unix_ms > first.rehearsal.at_unix_ms,
        "{second:?}"
    );
    Ok(())
}
