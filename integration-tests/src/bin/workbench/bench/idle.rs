//! Sleeps that nobody asks for: what a container writes to is noted from a second before.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use podmotion_integration_tests::{Client, Depth, Node, Sleeper};

use super::figure::Figure;
use super::memory::{PORT, check, counter};
use crate::numbers::Samples;
use crate::report::Progress;

/// Measures `rounds` of them with an application that holds `mb` MiB, after the first one.
pub fn measure(node: &Node, mb: u32, rounds: u64, progress: &Progress) -> Result<Vec<Figure>> {
    node.sleep(Depth::Light)?;
    let container = node.run(counter(mb).annotation("scaledown-duration", "2s"))?;
    container.stdout()?.wait_for("listening")?;
    let times = ByItself::measure(
        &container.sleeper(),
        container.address(PORT)?,
        rounds,
        |number| {
            progress.detail(&format!("{mb} MB: asleep by itself, {number} of {rounds}"));
        },
    )?;
    Ok(times
        .figures(&format!("{mb} MB, light sleep by itself"))
        .into())
}

/// Times of sleeps that nobody has asked for.
pub struct ByItself {
    sleep: Samples,
    frozen: Samples,
}

impl ByItself {
    /// Waits for `rounds` of them after the first one, which moves all memory. A request wakes the container after each.
    pub fn measure(
        sleeper: &Sleeper,
        address: SocketAddr,
        rounds: u64,
        begins: impl Fn(u64),
    ) -> Result<Self> {
        let (mut sleep, mut frozen) = (Samples::default(), Samples::default());
        for number in 0..=rounds {
            begins(number);
            let slept = sleeper.wait_state("asleep")?.last_sleep;
            if number > 0 {
                sleep.add_time(Duration::from_micros(slept.took_us));
                frozen.add_time(Duration::from_micros(slept.frozen_us));
            }
            let response = Client::default().get(address, "/")?;
            check(&response.body, number + 1).context("after a sleep of its own")?;
        }
        Ok(Self { sleep, frozen })
    }

    /// The time until memory is free, and how much of it the container stood still.
    pub fn figures(self, name: &str) -> [Figure; 2] {
        [
            Figure::new(format!("{name}, decision to memory free"), "ms", self.sleep),
            Figure::new(format!("  {name}, stood still"), "ms", self.frozen),
        ]
    }
}
