//! Sleep and wake of applications that hold memory, and the same by plain runc, in turns.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{App, Client, Container, Depth, Node};

use super::figure::{Figure, Target};
use super::plain::Plain;
use crate::numbers::Samples;
use crate::report::Progress;

/// Where the application listens.
pub const PORT: u16 = 8080;

/// What should be reached with an application of some size, and what the best existing peer does on a
/// machine of this kind.
struct Size {
    mb: u32,
    /// Largest share of the time that plain runc takes to restore, for a wake from deep sleep.
    wake: f64,
    /// Most milliseconds for a wake from light sleep.
    light_wake_ms: f64,
    peer_wake_ms: f64,
    peer_sleep_ms: f64,
}

const SIZES: &[Size] = &[
    Size {
        mb: 50,
        wake: 0.5,
        light_wake_ms: 4.0,
        peer_wake_ms: 176.0,
        peer_sleep_ms: 262.0,
    },
    Size {
        mb: 500,
        wake: 0.25,
        light_wake_ms: 5.0,
        peer_wake_ms: 588.0,
        peer_sleep_ms: 675.0,
    },
    Size {
        mb: 2000,
        wake: 0.25,
        light_wake_ms: 8.0,
        peer_wake_ms: 1958.0,
        peer_sleep_ms: 1700.0,
    },
];

/// Largest share of the time that plain runc takes for a checkpoint.
const SLEEP: f64 = 0.5;

#[derive(Default)]
struct Ours {
    wake: Samples,
    restore: Samples,
    whole: Samples,
    sleep: Samples,
    frozen: Samples,
}

#[derive(Default)]
struct Theirs {
    restore: Samples,
    checkpoint: Samples,
}

/// One size.
#[derive(Default)]
struct Measured {
    light: Ours,
    deep: Ours,
    plain: Theirs,
}

/// Measures with that many MiB.
pub fn measure(node: &Node, mb: u32, rounds: usize, progress: &Progress) -> Result<Vec<Figure>> {
    progress.begin(&format!("{mb} MB: start"));
    let started = Instant::now();
    let start = |depth| -> Result<Container> {
        node.sleep(depth)?;
        let container = node.run(counter(mb))?;
        container.stdout()?.wait_for("listening")?;
        Ok(container)
    };
    let ours = [start(Depth::Light)?, start(Depth::Deep)?];
    let theirs = Plain::run(&ours[1])?;
    let mut measured = Measured::default();
    // The first of each is to warm up, and in light sleep the only one that moves all memory.
    round(&ours, &theirs, 1, &mut measured)?;
    let first = std::mem::take(&mut measured).light.sleep;
    for number in 0..rounds {
        progress.detail(&format!("{mb} MB: round {} of {rounds}", number + 1));
        let count = u64::try_from(number)? + 2;
        round(&ours, &theirs, count, &mut measured)?;
    }
    progress.end(&format!(
        "{mb} MB: {rounds} sleeps and wakes of each in {:.0} s",
        started.elapsed().as_secs_f64()
    ));
    Ok(figures(mb, measured, first))
}

/// A container of ours that never sleeps by itself.
pub fn counter(mb: u32) -> App {
    App::counter()
        .mem_mb(mb)
        .env("LOG_REQUESTS", "0")
        .annotation("scaledown-duration", "1h")
}

/// One sleep and wake of each; `count` is which request of each comes then. Who comes first takes turns: the
/// second finds the disk busy with the first one's images.
fn round(
    [light, deep]: &[Container; 2],
    theirs: &Plain,
    count: u64,
    measured: &mut Measured,
) -> Result<()> {
    measured.light.round(light, count)?;
    if count.is_multiple_of(2) {
        measured.deep.round(deep, count)?;
        measured.plain.round(theirs, count)
    } else {
        measured.plain.round(theirs, count)?;
        measured.deep.round(deep, count)
    }
}

impl Ours {
    fn round(&mut self, container: &Container, count: u64) -> Result<()> {
        container.sleep().context("sleep")?;
        let slept = container.wait_state("asleep")?.last_sleep;
        self.sleep.add_time(Duration::from_micros(slept.took_us));
        self.frozen.add_time(Duration::from_micros(slept.frozen_us));

        let began = Instant::now();
        let response = Client::default().get(container.address(PORT)?, "/")?;
        self.wake.add_time(response.first_byte);
        check(&response.body, count)?;
        // It has an opinion on sleep once its memory is back, and not at once after an eager restore.
        let woken = container.sleeper().wait_until("memory back", |status| {
            status.state == "running" && status.awake_reason.is_some()
        })?;
        if woken.last_wake.lazy {
            self.whole.add_time(began.elapsed());
        }
        let restore = Duration::from_micros(woken.last_wake.took_us);
        self.restore.add_time(restore);
        Ok(())
    }
}

impl Theirs {
    fn round(&mut self, container: &Plain, count: u64) -> Result<()> {
        self.checkpoint.add_time(container.checkpoint()?);
        let (restore, body) = container.restore()?;
        self.restore.add_time(restore);
        check(&body, count)
    }
}

/// Whether the answer is of the process that was put away, with its memory.
fn check(body: &str, count: u64) -> Result<()> {
    let answer: serde_json::Value = serde_json::from_str(body).context("parse the answer")?;
    ensure!(
        answer["count"] == count && answer["mem_ok"] == true,
        "not answer {count} of the same process: {body}"
    );
    Ok(())
}

fn figures(mb: u32, measured: Measured, first: Samples) -> Vec<Figure> {
    let Measured { light, deep, plain } = measured;
    let size = SIZES.iter().find(|size| size.mb == mb);
    let named = |what: &str, samples| Figure::new(format!("{mb} MB, {what}"), "ms", samples);
    let detail = |what: &str, samples| Figure::new(format!("  {mb} MB, {what}"), "ms", samples);
    let mut fast = named("light wake, SYN to first byte", light.wake)
        .beside("runc restore to first byte", plain.restore.clone())
        .peer(size.map(|size| size.peer_wake_ms));
    let mut wake = named("deep wake, SYN to first byte", deep.wake)
        .beside("runc restore to first byte", plain.restore)
        .peer(size.map(|size| size.peer_wake_ms));
    if let Some(size) = size {
        fast = fast.target(Target::AtMost(size.light_wake_ms));
        wake = wake.target(Target::Share(size.wake));
    }
    let sleep = |what: &str, samples| {
        named(what, samples)
            .beside("runc checkpoint", plain.checkpoint.clone())
            .target(Target::Share(SLEEP))
            .peer(size.map(|size| size.peer_sleep_ms))
    };
    let mut figures = vec![fast, detail("to running again", light.restore)];
    if light.whole.count() > 0 {
        figures.push(detail("SYN to all memory back", light.whole));
    }
    figures.extend([
        sleep("light sleep, decision to memory free", light.sleep),
        detail("the first light sleep", first),
        detail("stood still", light.frozen),
        wake,
        detail("restore alone", deep.restore),
    ]);
    if deep.whole.count() > 0 {
        figures.push(detail("SYN to all memory back", deep.whole));
    }
    figures.extend([
        sleep("deep sleep, decision to memory free", deep.sleep),
        detail("stood still", deep.frozen),
    ]);
    figures
}
