//! Sums of what several containers have counted.

use podmotion_proto::shim::v1::{Container, Histogram, SleepTally, WakeTally};

/// Adds what `other` has counted to what `container` has.
pub fn add(container: &mut Container, other: &Container) {
    container.counters.mut_or_insert_default().cold_starts += other.counters.cold_starts;
    let tallies = container.tallies.mut_or_insert_default();
    let more = &other.tallies;
    merge(
        &mut tallies.sleeps,
        &more.sleeps,
        |one| &one.depth,
        add_sleeps,
    );
    merge(&mut tallies.wakes, &more.wakes, |one| &one.depth, add_wakes);
    add_times(
        tallies.first_packet_held.mut_or_insert_default(),
        more.first_packet_held.get_or_default(),
    );
}

/// Adds each of `more` to the one of its depth.
fn merge<T: Clone>(
    tallies: &mut Vec<T>,
    more: &[T],
    depth: fn(&T) -> &String,
    add: fn(&mut T, &T),
) {
    for tally in more {
        match tallies.iter_mut().find(|one| depth(one) == depth(tally)) {
            Some(known) => add(known, tally),
            None => tallies.push(tally.clone()),
        }
    }
}

fn add_sleeps(known: &mut SleepTally, more: &SleepTally) {
    known.succeeded += more.succeeded;
    known.aborted += more.aborted;
    known.failed += more.failed;
    add_times(
        known.took.mut_or_insert_default(),
        more.took.get_or_default(),
    );
}

fn add_wakes(known: &mut WakeTally, more: &WakeTally) {
    known.succeeded += more.succeeded;
    known.failed += more.failed;
    known.lazy_succeeded += more.lazy_succeeded;
    known.lazy_failed += more.lazy_failed;
    add_times(
        known.took.mut_or_insert_default(),
        more.took.get_or_default(),
    );
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
