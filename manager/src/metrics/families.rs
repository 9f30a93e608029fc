//! The metric families, each with its help.

use std::fmt;

use podmotion_proto::shim::v1::{Container, Histogram, WakeTally};
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::labels::{Of, Plain};
use crate::node::SelfTest;
use crate::store::Store;

/// Each state that a container can be in, as its shim names it.
pub const STATES: [&str; 7] = [
    "created",
    "running",
    "falling-asleep",
    "asleep",
    "waking",
    "restore-failed",
    "stopped",
];

/// What is true of the whole node.
pub fn node(
    encoder: &mut DescriptorEncoder<'_>,
    store: &Store,
    containers: &[&Container],
    self_test: Option<&SelfTest>,
) -> fmt::Result {
    let (name, help) = ("podmotion_build", "The manager's version");
    let mut info = encoder.encode_descriptor(name, help, None, MetricType::Info)?;
    info.encode_info(&Plain([("version", env!("CARGO_PKG_VERSION"))]))?;

    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let silent = store.shims().filter(|(_, shim)| shim.silent.is_some());
    let waiting = containers.iter().filter(|one| one.memory_wait.is_some());
    for (name, help, value) in [
        (
            "podmotion_shims",
            "Shims that have a socket on the node",
            count(store.shims().count()),
        ),
        (
            "podmotion_shims_unreachable",
            "Shims that have a socket and do not answer",
            count(silent.count()),
        ),
        (
            "podmotion_wakes_waiting_for_memory",
            "Containers whose wake waits for the node to have memory",
            count(waiting.count()),
        ),
    ] {
        gauge(encoder, name, help)?.encode_gauge(&value)?;
    }
    let Some(self_test) = self_test else {
        return Ok(());
    };
    let (name, help) = (
        "podmotion_self_test_passed",
        "Whether the node's self-test has passed with the kernel and containerd that run now",
    );
    gauge(encoder, name, help)?.encode_gauge(&u64::from(self_test.holds))?;
    let Some(finished) = self_test.finished else {
        return Ok(());
    };
    let (name, help) = (
        "podmotion_self_test_timestamp_seconds",
        "When the node's self-test came to its end",
    );
    gauge(encoder, name, help)?.encode_gauge(&finished)
}

fn gauge<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    name: &'a str,
    help: &str,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)
}

/// How sleeps went.
pub fn sleeps(encoder: &mut DescriptorEncoder<'_>, containers: &[&Container]) -> fmt::Result {
    let (name, help) = (
        "podmotion_checkpoints",
        "Tries to put a container to sleep, by how they ended",
    );
    let mut counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for container in containers {
        for tally in &container.tallies.sleeps {
            for (result, count) in [
                ("success", tally.succeeded),
                ("aborted", tally.aborted),
                ("failed", tally.failed),
            ] {
                let labels = Of(container, [("result", result), ("depth", &tally.depth)]);
                counted(&mut counter, &labels, count)?;
            }
        }
    }
    let (name, help) = (
        "podmotion_checkpoint_duration_seconds",
        "From the decision that a container sleeps until its memory was free",
    );
    let mut histogram = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for container in containers {
        for tally in &container.tallies.sleeps {
            let labels = Of(container, [("depth", &tally.depth)]);
            distributed(&mut histogram, &labels, &tally.took)?;
        }
    }
    Ok(())
}

/// How wakes went.
pub fn wakes(encoder: &mut DescriptorEncoder<'_>, containers: &[&Container]) -> fmt::Result {
    let (name, help) = (
        "podmotion_restores",
        "Tries to wake a container, by how they ended and what they were",
    );
    let mut counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for container in containers {
        for tally in &container.tallies.wakes {
            for (kind, succeeded, failed) in kinds(tally) {
                for (result, count) in [("success", succeeded), ("failed", failed)] {
                    let labels = Of(container, [("result", result), ("kind", kind)]);
                    counted(&mut counter, &labels, count)?;
                }
            }
        }
        let labels = Of(container, [("result", "success"), ("kind", "cold-start")]);
        counted(&mut counter, &labels, container.counters.cold_starts)?;
    }
    let (name, help) = (
        "podmotion_restore_duration_seconds",
        "From the request that a container wakes until its processes ran",
    );
    let mut histogram = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for container in containers {
        for tally in &container.tallies.wakes {
            let labels = Of(container, [("depth", &tally.depth)]);
            distributed(&mut histogram, &labels, &tally.took)?;
        }
    }
    let (name, help) = (
        "podmotion_first_byte_hold_seconds",
        "How long the first packet was held for a container that slept",
    );
    let mut histogram = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for container in containers {
        let held = &container.tallies.first_packet_held;
        distributed(&mut histogram, &Of(container, []), held)?;
    }
    Ok(())
}

/// Kinds of wakes, with those that succeeded and those that failed.
fn kinds(tally: &WakeTally) -> Vec<(&str, u64, u64)> {
    if tally.depth != "deep" {
        return vec![(&tally.depth, tally.succeeded, tally.failed)];
    }
    let whole = (
        tally.succeeded.saturating_sub(tally.lazy_succeeded),
        tally.failed.saturating_sub(tally.lazy_failed),
    );
    vec![
        ("deep", whole.0, whole.1),
        ("deep-lazy", tally.lazy_succeeded, tally.lazy_failed),
    ]
}

/// How containers are at this moment.
pub fn now(encoder: &mut DescriptorEncoder<'_>, containers: &[&Container]) -> fmt::Result {
    let (name, help) = (
        "podmotion_container_state",
        "1 for the state that the container is in, 0 for the others",
    );
    let mut family = gauge(encoder, name, help)?;
    for container in containers {
        for state in STATES {
            let is = u64::from(container.state == state);
            let labels = Of(container, [("state", state)]);
            family.encode_family(&labels)?.encode_gauge(&is)?;
        }
    }
    let (name, help) = (
        "podmotion_awake_reason",
        "1 for the reason for which the container stays awake",
    );
    let mut family = gauge(encoder, name, help)?;
    for container in containers {
        if let Some(reason) = container.awake_reason.as_ref() {
            let labels = Of(container, [("reason", &reason.name)]);
            family.encode_family(&labels)?.encode_gauge(&1_u64)?;
        }
    }
    let (name, help) = (
        "podmotion_memory_freed_bytes",
        "Memory that is freed at this moment",
    );
    let mut family = gauge(encoder, name, help)?;
    for container in containers {
        let labels = Of(container, []);
        let bytes = container.memory_freed_bytes;
        family.encode_family(&labels)?.encode_gauge(&bytes)?;
    }
    let (name, help) = (
        "podmotion_image_bytes",
        "Size of the images on disk at this moment",
    );
    let mut family = gauge(encoder, name, help)?;
    for container in containers {
        let labels = Of(container, []);
        let bytes = container.image_bytes;
        family.encode_family(&labels)?.encode_gauge(&bytes)?;
    }
    Ok(())
}

fn counted(
    encoder: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    count: u64,
) -> fmt::Result {
    encoder
        .encode_family(labels)?
        .encode_counter::<NoLabelSet, _, u64>(&count, None)
}

fn distributed(
    encoder: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    histogram: &Histogram,
) -> fmt::Result {
    #[expect(
        clippy::cast_precision_loss,
        reason = "2^53 microseconds are 285 years"
    )]
    let seconds = |micros: u64| micros as f64 / 1e6;
    let bounds = histogram.bounds_us.iter().copied().map(seconds);
    let buckets: Vec<(f64, u64)> = bounds
        .chain([f64::INFINITY])
        .zip(histogram.counts.iter().copied())
        .collect();
    let count = histogram.counts.iter().sum();
    encoder
        .encode_family(labels)?
        .encode_histogram::<NoLabelSet>(seconds(histogram.sum_us), count, &buckets, None)
}
