//! Containers that sleep and wake, one topic to a file.

mod core;
mod keepalive;
mod record;

use libtest_mimic::Trial;
use podmotion_integration_tests::{Runtime, Versions};

use crate::{Body, trial};

/// A file's tests, for the default pair of versions.
type Topic = &'static [(&'static str, Body)];

const TOPICS: &[Topic] = &[
    core::TESTS,
    keepalive::TESTS, //
];

pub(crate) fn trials() -> Vec<Trial> {
    TOPICS
        .iter()
        .copied()
        .flatten()
        .map(|(name, body)| trial(name, *body, Runtime::Podmotion, Versions::default()))
        .chain(record::trials())
        .collect()
}
