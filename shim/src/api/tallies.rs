//! A container's tallies, as messages.

use podmotion_proto::shim::v1 as proto;

use crate::sleep::tally::{BOUNDS_US, Histogram, Tallies};

/// All of them.
pub fn tallies(tallies: &Tallies) -> proto::Tallies {
    let mut told = proto::Tallies {
        first_packet_held: histogram(&tallies.first_packet_held).into(),
        ..Default::default()
    };
    for (depth, sleeps, wakes) in tallies.by_depth() {
        told.sleeps.push(proto::SleepTally {
            depth: depth.as_str().to_owned(),
            succeeded: sleeps.succeeded,
            aborted: sleeps.aborted,
            failed: sleeps.failed,
            took: histogram(&sleeps.took).into(),
            ..Default::default()
        });
        told.wakes.push(proto::WakeTally {
            depth: depth.as_str().to_owned(),
            succeeded: wakes.succeeded,
            failed: wakes.failed,
            lazy_succeeded: wakes.lazy_succeeded,
            lazy_failed: wakes.lazy_failed,
            took: histogram(&wakes.took).into(),
            ..Default::default()
        });
    }
    told
}

fn histogram(histogram: &Histogram) -> Option<proto::Histogram> {
    Some(proto::Histogram {
        bounds_us: BOUNDS_US.to_vec(),
        counts: histogram.counts.to_vec(),
        sum_us: histogram.sum_us,
        ..Default::default()
    })
}
