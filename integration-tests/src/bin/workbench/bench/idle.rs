//! Sleeps that nobody asks for: what a container writes to is noted from a second before.

use std::time::Duration;

use anyhow::{Context, Result};
use podmotion_integration_tests::{Client, Depth, Node};

use super::figure::{Figure, Target};
use super::memory::{PORT, check, counter, is_smallest};
use crate::numbers::Samples;
use crate::report::Progress;

/// Most milliseconds for a light sleep that is not the first, of the smallest size.
const SECOND_SLEEP_MS: f64 = 10.0;

/// Measures `rounds` of them with an application that holds `mb` MiB, after the first one.
pub fn measure(node: &Node, mb: u32, rounds: u64, progress: &Progress) -> Result<Vec<Figure>> {
    node.sleep(Depth::Light)?;
    let container = node.run(counter(mb).annotation("scaledown-duration", "2s"))?;
    container.stdout()?.wait_for("listening")?;
    let (mut sleep, mut frozen) = (Samples::default(), Samples::default());
    for number in 0..=rounds {
        progress.detail(&format!("{mb} MB: asleep by itself, {number} of {rounds}"));
        let slept = container.wait_state("asleep")?.last_sleep;
        if number > 0 {
            sleep.add_time(Duration::from_micros(slept.took_us));
            frozen.add_time(Duration::from_micros(slept.frozen_us));
        }
        let response = Client::default().get(container.address(PORT)?, "/")?;
        check(&response.body, number + 1).context("after a sleep of its own")?;
    }
    let name = format!("{mb} MB, light sleep by itself, decision to memory free");
    let mut sleep = Figure::new(name, "ms", sleep);
    if is_smallest(mb) {
        sleep = sleep.target(Target::AtMost(SECOND_SLEEP_MS));
    }
    let frozen = Figure::new(format!("  {mb} MB, stood still"), "ms", frozen);
    Ok(vec![sleep, frozen])
}
