//! Many sleeping containers on one node.

use std::sync::Barrier;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use podmotion_integration_tests::{Client, Container, Node, Runtime, soak};

use super::depth::counter;
use super::visit;
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[(
    "sleep::crowd::all_fall_asleep_at_once_and_are_answered_at_once",
    all_fall_asleep_at_once_and_are_answered_at_once,
)];

/// Containers, and in the long variant.
const CONTAINERS: usize = 20;
const CONTAINERS_IN_A_SOAK: usize = 100;
/// What each holds, in MiB.
const MEGABYTES: u32 = 10;

fn all_fall_asleep_at_once_and_are_answered_at_once(node: &Node, _: Runtime) -> Result<()> {
    let count = if soak() {
        CONTAINERS_IN_A_SOAK
    } else {
        CONTAINERS
    };
    let containers: Vec<Container> = (0..count)
        .map(|_| counter(node, "never", MEGABYTES))
        .collect::<Result<_>>()?;
    for round in 1..=2 {
        at_once(&containers, Container::sleep)?;
        let answers = at_once(&containers, |container| visit(container.address(8080)?))?;
        ensure!(answers.iter().all(|answer| *answer == round), "{answers:?}");
    }
    let wholes = at_once(&containers, |container| {
        Client::default().get(container.address(8080)?, "/mem")
    })?;
    for (container, whole) in containers.iter().zip(wholes) {
        ensure!(whole.body.contains("\"mem_ok\": true"), "{whole:?}");
        let status = container.status()?;
        let counters = &status.counters;
        ensure!(
            (counters.sleeps, counters.wakes) == (2, 2) && status.last_error.is_empty(),
            "{status:?}"
        );
    }
    Ok(())
}

/// Does the same with all of them in one moment.
fn at_once<T: Send>(
    containers: &[Container],
    work: impl Fn(&Container) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let start = Barrier::new(containers.len());
    thread::scope(|scope| {
        let threads: Vec<_> = containers
            .iter()
            .map(|container| {
                scope.spawn(|| {
                    start.wait();
                    work(container).with_context(|| container.id().to_owned())
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a panic"))))
            .collect()
    })
}
