//! Sums of what several containers have counted.

use podmotion_proto::shim::v1::{Container, Histogram, SleepTally, WakeTally};

/// Adds what `other` has counted to what `container` has.
pub fn add(container: &mut Container, other: &Container) {
    container.counters.mut_or_insert_default().cold_starts += other.counters.cold_starts;
    let tallies = container.tallies.mut_or_insert_default();
    for tally in &other.tallies.sleeps {
        match tallies
            .sleeps
            .iter_mut()
            .find(|one| one.depth == tally.depth)
        {
            Some(known) => add_sleeps(known, tally),
            None => tallies.sleeps.push(tally.clone()),
        }
    }
    for tally in &other.tallies.wakes {
        match tallies
            .wakes
            .iter_mut()
            .find(|one| one.depth == tally.depth)
        {
            Some(known) => add_wakes(known, tally),
            None => tallies.wakes.push(tally.clone()),
        }
    }
    if let Some(held) = other.tallies.first_packet_held.as_ref() {
        add_times(tallies.first_packet_held.mut_or_insert_default(), held);
    }
}

fn add_sleeps(known: &mut SleepTally, more: &SleepTally) {
    known.succeeded += more.succeeded;
    known.aborted += more.aborted;
    known.failed += more.failed;
    if let Some(took) = more.took.as_ref() {
        add_times(known.took.mut_or_insert_default(), took);
    }
}

fn add_wakes(known: &mut WakeTally, more: &WakeTally) {
    known.succeeded += more.succeeded;
    known.failed += more.failed;
    known.lazy_succeeded += more.lazy_succeeded;
    known.lazy_failed += more.lazy_failed;
    if let Some(took) = more.took.as_ref() {
        add_times(known.took.mut_or_insert_default(), took);
    }
}

/// Shims of one version have the same bounds. Others' times would be wrong: they are left out.
fn add_times(known: &mut Histogram, more: &Histogram) {
    if known.counts.is_empty() {
        *known = more.clone();
    } else if known.bounds_us == more.bounds_us {
        for (known, more) in known.counts.iter_mut().zip(&more.counts) {
            *known += more;
        }
        known.sum_us += more.sum_us;
    }
}
