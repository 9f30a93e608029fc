//! Pods of a real Kubernetes, asleep: what the kubelet, users and other containers do to them.

mod chart;
mod counter;
mod ctl;
mod ends;
mod failures;
mod kubelet;
mod limits;
mod manager;
mod manifest;
mod members;
mod nodes;
mod piped;
mod probes;
mod reach;
mod soak;
mod streams;

use anyhow::Result;
use libtest_mimic::{Failed, Trial};
use podmotion_integration_tests::{Cluster, Depth};

use crate::pool;

/// A test's body. Containers of the cluster sleep as deep as the trial's name says.
type Body = fn(&Cluster) -> Result<()>;

const TOPICS: &[&[(&str, Body)]] = &[
    reach::TESTS,
    nodes::TESTS,
    probes::TESTS,
    failures::TESTS,
    streams::TESTS,
    members::TESTS,
    limits::TESTS,
    ends::TESTS,
    kubelet::TESTS,
    manager::TESTS,
];

/// All tests, each in both depths.
pub(crate) fn trials() -> Vec<Trial> {
    [Depth::Light, Depth::Deep]
        .into_iter()
        .flat_map(|depth| {
            let tests = TOPICS.iter().copied().flatten();
            tests.map(move |(name, body)| trial(name, *body, depth))
        })
        .chain(
            [soak::TESTS, chart::TESTS, ctl::TESTS]
                .into_iter()
                .flatten()
                .map(|(name, body)| trial(name, *body, Depth::Light)),
        )
        .collect()
}

fn trial(name: &str, body: Body, depth: Depth) -> Trial {
    let full = format!("{name}[{depth}]");
    Trial::test(full, move || {
        let to_failure = |error: anyhow::Error| Failed::from(format!("{error:#}"));
        let cluster = pool::cluster().map_err(to_failure)?;
        cluster.sleep(depth).map_err(to_failure)?;
        body(&cluster)
            .map_err(|error| Failed::from(format!("{error:#}\n\nThe logs:\n{}", cluster.logs())))
    })
}
