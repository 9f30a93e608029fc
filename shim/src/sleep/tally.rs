//! How often a container slept and woke, how deep, and how long that took.
//!
//! Kept by the shim, for as long as the container lives: who collects figures can start anew and
//! has all of them.

use std::time::Duration;

use podmotion_model::lifecycle::Depth;

/// Upper bounds of the intervals of a [`Histogram`], in microseconds: a light wake takes some
/// milliseconds, a restore of gigabytes many seconds.
pub const BOUNDS_US: [u64; 14] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000,
];

/// Durations, counted by interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many are in each interval; the last has no bound.
    pub counts: [u64; BOUNDS_US.len() + 1],
    /// All of them added up, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let interval = BOUNDS_US.partition_point(|bound| *bound < took);
        self.counts[interval] += 1;
        self.sum_us = self.sum_us.saturating_add(took);
    }
}

/// Tries to put a container to sleep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sleeps {
    /// It slept.
    pub succeeded: u64,
    /// Given up because the container was wanted.
    pub aborted: u64,
    /// It could not be done.
    pub failed: u64,
    /// What those took that succeeded.
    pub took: Histogram,
}

impl Sleeps {
    /// Counts one that succeeded.
    pub fn succeeded(&mut self, took: Duration) {
        self.succeeded += 1;
        self.took.add(took);
    }
}

/// Tries to wake a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wakes {
    /// It ran.
    pub succeeded: u64,
    /// It could not be done.
    pub failed: u64,
    /// Of those that succeeded: before all of its memory was back.
    pub lazy_succeeded: u64,
    /// Of those that failed: meant to be so.
    pub lazy_failed: u64,
    /// What those took that succeeded.
    pub took: Histogram,
}

impl Wakes {
    /// Counts one that succeeded.
    pub fn succeeded(&mut self, took: Duration, lazy: bool) {
        self.succeeded += 1;
        self.lazy_succeeded += u64::from(lazy);
        self.took.add(took);
    }

    /// Counts one that failed.
    pub fn failed(&mut self, lazy: bool) {
        self.failed += 1;
        self.lazy_failed += u64::from(lazy);
    }
}

/// All of a container's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tallies {
    sleeps: [Sleeps; DEPTHS.len()],
    wakes: [Wakes; DEPTHS.len()],
    /// How long the first packet was held, each time that there was one.
    pub first_packet_held: Histogram,
}

const DEPTHS: [Depth; 3] = [Depth::Light, Depth::Deep, Depth::Cold];

fn index(depth: Depth) -> usize {
    match depth {
        Depth::Light => 0,
        Depth::Deep => 1,
        Depth::Cold => 2,
    }
}

impl Tallies {
    /// Tries to put it to sleep that deep.
    pub fn sleep(&mut self, depth: Depth) -> &mut Sleeps {
        &mut self.sleeps[index(depth)]
    }

    /// Tries to wake it from a sleep that deep.
    pub fn wake(&mut self, depth: Depth) -> &mut Wakes {
        &mut self.wakes[index(depth)]
    }

    /// Both, by depth.
    pub fn by_depth(&self) -> impl Iterator<Item = (Depth, &Sleeps, &Wakes)> {
        DEPTHS
            .into_iter()
            .map(|depth| (depth, &self.sleeps[index(depth)], &self.wakes[index(depth)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_on_a_bound_belongs_below_it() {
        let mut histogram = Histogram::default();
        for micros in [0, 1_000, 1_001, 30_000_000, 30_000_001] {
            histogram.add(Duration::from_micros(micros));
        }
        assert_eq!(histogram.counts[..3], [2, 1, 0]);
        assert_eq!(histogram.counts[13..], [1, 1]);
        assert_eq!(histogram.sum_us, 60_002_002);
    }

    #[test]
    fn depths_are_counted_apart() {
        let mut tallies = Tallies::default();
        tallies
            .sleep(Depth::Light)
            .succeeded(Duration::from_millis(3));
        tallies.sleep(Depth::Deep).failed += 1;
        tallies
            .wake(Depth::Deep)
            .succeeded(Duration::from_millis(80), true);
        tallies.wake(Depth::Deep).failed(false);
        let counts: Vec<_> = tallies
            .by_depth()
            .map(|(depth, sleeps, wakes)| {
                let sleeps = (sleeps.succeeded, sleeps.failed);
                (depth.as_str(), sleeps, (wakes.succeeded, wakes.failed))
            })
            .collect();
        assert_eq!(
            counts,
            [
                ("light", (1, 0), (0, 0)),
                ("deep", (0, 1), (1, 1)),
                ("cold", (0, 0), (0, 0)),
            ]
        );
        assert_eq!(tallies.wake(Depth::Deep).lazy_succeeded, 1);
        assert_eq!(tallies.wake(Depth::Deep).lazy_failed, 0);
    }
}
