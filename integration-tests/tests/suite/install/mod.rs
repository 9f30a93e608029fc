//! Podmotion put on nodes that run, and taken off again: real containerds, each with an `/etc`, `/opt`, `/run`
//! and BPF file system of its own. The test is who restarts containerd.

mod interrupted;
pub(crate) mod node;
mod pods;
mod refused;

use anyhow::Result;
use libtest_mimic::{Failed, Trial};
use podmotion_integration_tests::{ContainerdVersion, Node, RuncVersion, Versions};

/// A test's body. Nobody else has the node.
type Body = fn(&Node) -> Result<()>;

const TESTS: [(&str, Body); 5] = [
    (
        "install::pods_sleep_wake_and_outlive_it",
        pods::sleep_wake_and_outlive_it,
    ),
    (
        "install::once_more_changes_nothing",
        pods::once_more_changes_nothing,
    ),
    (
        "install::killed_between_any_two_actions",
        interrupted::at_every_action,
    ),
    (
        "install::a_containerd_that_does_not_come_up_gets_its_files_back",
        refused::rolled_back,
    ),
    (
        "install::a_node_that_cannot_have_it_is_left_alone",
        refused::left_alone,
    ),
];

/// All tests, with each containerd.
pub(crate) fn trials() -> Vec<Trial> {
    let with = |containerd| {
        let runc = RuncVersion::V1_3;
        let versions = Versions { containerd, runc };
        TESTS.map(|(name, body)| trial(name, body, versions))
    };
    ContainerdVersion::ALL.into_iter().flat_map(with).collect()
}

fn trial(name: &str, body: Body, versions: Versions) -> Trial {
    let full = format!("{name}[{}]", versions.containerd);
    Trial::test(full, move || {
        let to_failure = |error: anyhow::Error| Failed::from(format!("{error:#}"));
        let node = Node::start_without(versions).map_err(to_failure)?;
        body(&node).map_err(|error| {
            let log = node.log_tail();
            Failed::from(format!("{error:#}\n\nThe end of the log:\n{log}"))
        })
    })
}
