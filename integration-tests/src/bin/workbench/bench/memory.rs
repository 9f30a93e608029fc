//! Sleep and wake of applications that hold memory, and the same by plain runc, in turns.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{App, Client, Container, Depth, Node};

use super::evict::evict;
use super::figure::{Figure, Target};
use super::idle;
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
    /// Most milliseconds for a wake from light sleep, of the middle one and of 99 of 100.
    light_wake_ms: (f64, f64),
    peer_wake_ms: f64,
    peer_sleep_ms: f64,
}

const SIZES: &[Size] = &[
    Size {
        mb: 50,
        wake: 0.5,
        light_wake_ms: (4.0, 10.0),
        peer_wake_ms: 176.0,
        peer_sleep_ms: 262.0,
    },
    Size {
        mb: 500,
        wake: 0.25,
        light_wake_ms: (5.0, 12.0),
        peer_wake_ms: 588.0,
        peer_sleep_ms: 675.0,
    },
    Size {
        mb: 2000,
        wake: 0.25,
        light_wake_ms: (8.0, 20.0),
        peer_wake_ms: 1958.0,
        peer_sleep_ms: 1700.0,
    },
];

/// Largest share of the time that plain runc takes for a checkpoint.
const SLEEP: f64 = 0.5;
/// Largest share of the time of a wake from a plain image for one from a compressed image.
const COMPRESSED: f64 = 1.1;
/// From so many MiB on an application reads some of them for each request.
const LARGE_MB: u32 = 500;
/// That many MiB.
const WORKING_SET_MB: &str = "5";

/// Requests to an application that is awake, to tell its own time from that of its wake.
const AWAKE: u64 = 50;
/// How long it has nothing to do before some of them, as before a wake: its memory is then no more in the processor's caches.
const REST: Duration = Duration::from_millis(100);

/// Wakes after which it is known which pages each wake needs, for longer than what is measured then takes.
const LEARNING: u64 = 60;

/// How much is measured of one size.
pub struct Scale {
    /// Memory of the application, in MiB.
    pub mb: u32,
    /// Sleeps and wakes of each: light, deep, plain runc, light from disk.
    pub rounds: u64,
    /// Wakes from light sleep in all.
    pub wakes: u64,
}

/// Where an image is when its container wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Images {
    Cached,
    /// For that long, before the container wakes: what it needs is then no more in the processor's caches.
    CachedFor(Duration),
    OnDisk,
    Compressed,
}

#[derive(Default)]
struct Ours {
    wake: Samples,
    restore: Samples,
    /// Of a wake from light sleep, what the last wakes had needed.
    prefetch: Samples,
    thaw: Samples,
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
    /// The same request to the same application, awake.
    awake: Samples,
    /// And after a rest.
    rested: Samples,
    /// The same, with an image that is not in the page cache.
    disk: Ours,
    /// The same, with an image that is compressed, and beside it in turns with a plain one.
    compressed: Ours,
    beside_compressed: Ours,
    deep: Ours,
    plain: Theirs,
}

/// Measures with an application of some size.
pub fn measure(node: &Node, scale: &Scale, progress: &Progress) -> Result<Vec<Figure>> {
    let Scale { mb, rounds, wakes } = *scale;
    progress.begin(&format!("{mb} MB: start"));
    let started = Instant::now();
    let start = |depth| -> Result<Container> {
        node.sleep(depth)?;
        let mut app = counter(mb);
        if mb >= LARGE_MB {
            app = app.env("TOUCH_MB", WORKING_SET_MB);
        }
        let container = node.run(app)?;
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
        round(&ours, &theirs, number + 2, &mut measured)?;
    }
    let [light, deep] = ours;
    // What they hold is not needed any more.
    drop((deep, theirs));
    for number in rounds..wakes {
        progress.detail(&format!("{mb} MB: light wake {} of {wakes}", number + 1));
        measured.light.round(&light, number + 2, Images::Cached)?;
    }
    for number in 0..rounds {
        progress.detail(&format!("{mb} MB: from disk, {} of {rounds}", number + 1));
        let count = rounds.max(wakes) + number + 2;
        measured.disk.round(&light, count, Images::OnDisk)?;
    }
    let mut next = rounds.max(wakes) + rounds + 2;
    for (rest, samples) in [
        (Duration::ZERO, &mut measured.awake),
        (REST, &mut measured.rested),
    ] {
        for number in 0..AWAKE {
            thread::sleep(rest);
            let response = Client::default().get(light.address(PORT)?, "/")?;
            samples.add_time(response.first_byte);
            check(&response.body, next + number)?;
        }
        next += AWAKE;
    }
    if is_smallest(mb) {
        measured.compressed(node, &light, rounds, next, progress)?;
    }
    drop(light);
    let by_itself = idle::measure(node, mb, rounds, progress)?;
    progress.end(&format!(
        "{mb} MB: {rounds} sleeps and wakes of each, {wakes} from light sleep, in {:.0} s",
        started.elapsed().as_secs_f64()
    ));
    let mut figures = figures(mb, measured, first);
    figures.extend(by_itself);
    Ok(figures)
}

/// Whether it is the size with most targets.
pub fn is_smallest(mb: u32) -> bool {
    SIZES.first().is_some_and(|size| size.mb == mb)
}

impl Measured {
    /// Wakes from compressed images and from those of `light`, whose next request is `next`, in turns.
    fn compressed(
        &mut self,
        node: &Node,
        light: &Container,
        rounds: u64,
        next: u64,
        progress: &Progress,
    ) -> Result<()> {
        node.sleep(Depth::Light)?;
        let settings = node.set("checkpoint.compress_after = \"1ms\"\n")?;
        let container = node.run(counter(SIZES[0].mb))?;
        container.stdout()?.wait_for("listening")?;
        // Until it is known which pages a wake needs: they stay as they are, and the other one's are known.
        let mut unknown = Ours::default();
        for number in 0..LEARNING {
            unknown.round(&container, number + 1, Images::Cached)?;
        }
        for number in 0..rounds {
            progress.detail(&format!("compressed, {} of {rounds}", number + 1));
            let asleep =
                self.compressed
                    .round(&container, LEARNING + number + 1, Images::Compressed)?;
            self.beside_compressed
                .round(light, next + number, Images::CachedFor(asleep))?;
        }
        drop(settings);
        Ok(())
    }
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
    measured.light.round(light, count, Images::Cached)?;
    if count.is_multiple_of(2) {
        measured.deep.round(deep, count, Images::Cached)?;
        measured.plain.round(theirs, count)
    } else {
        measured.plain.round(theirs, count)?;
        measured.deep.round(deep, count, Images::Cached)?;
        Ok(())
    }
}

impl Ours {
    /// A sleep and a wake. Returns how long the container was asleep.
    fn round(&mut self, container: &Container, count: u64, images: Images) -> Result<Duration> {
        container.sleep().context("sleep")?;
        let slept = container.wait_state("asleep")?.last_sleep;
        let asleep = Instant::now();
        self.sleep.add_time(Duration::from_micros(slept.took_us));
        self.frozen.add_time(Duration::from_micros(slept.frozen_us));
        match images {
            Images::Cached => {}
            Images::CachedFor(time) => thread::sleep(time),
            Images::OnDisk => evict(container)?,
            Images::Compressed => {
                let slept = container
                    .sleeper()
                    .wait_until("a compressed image", |status| {
                        !status.last_sleep.compression.is_empty()
                    })?;
                let said = &slept.last_sleep.compression;
                ensure!(said == "lz4", "the image is not compressed: {said}");
            }
        }

        let began = Instant::now();
        let asleep = began - asleep;
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
        let prefetch = Duration::from_micros(woken.last_wake.prefetch_us);
        self.prefetch.add_time(prefetch);
        let thaw = Duration::from_micros(woken.last_wake.thaw_us);
        self.thaw.add_time(thaw);
        Ok(asleep)
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
pub fn check(body: &str, count: u64) -> Result<()> {
    let answer: serde_json::Value = serde_json::from_str(body).context("parse the answer")?;
    ensure!(
        answer["count"] == count && answer["mem_ok"] == true,
        "not answer {count} of the same process: {body}"
    );
    Ok(())
}

fn figures(mb: u32, measured: Measured, first: Samples) -> Vec<Figure> {
    let Measured {
        light,
        awake,
        rested,
        disk,
        compressed,
        beside_compressed,
        deep,
        plain,
    } = measured;
    let size = SIZES.iter().find(|size| size.mb == mb);
    let named = |what: &str, samples| Figure::new(format!("{mb} MB, {what}"), "ms", samples);
    let detail = |what: &str, samples| Figure::new(format!("  {mb} MB, {what}"), "ms", samples);
    let wake = |what: &str, samples| {
        named(what, samples)
            .beside("runc restore to first byte", plain.restore.clone())
            .peer(size.map(|size| size.peer_wake_ms))
    };
    let sleep = |what: &str, samples| {
        named(what, samples)
            .beside("runc checkpoint", plain.checkpoint.clone())
            .target(Target::Share(SLEEP))
            .peer(size.map(|size| size.peer_sleep_ms))
    };
    let mut light_wake = wake("light wake, SYN to first byte", light.wake);
    let mut deep_wake = wake("deep wake, SYN to first byte", deep.wake);
    if let Some(size) = size {
        let (middle, most) = size.light_wake_ms;
        light_wake = light_wake.target(Target::Both(middle, most));
        deep_wake = deep_wake.target(Target::Share(size.wake));
    }
    let light_sleep = sleep("light sleep, decision to memory free", light.sleep);
    let mut figures = vec![
        light_wake,
        detail("the same request, awake", awake),
        detail("the same request, awake, after a rest", rested),
        detail("to running again", light.restore),
        detail("of it, what was needed before", light.prefetch),
        detail("of it, thawing", light.thaw),
    ];
    if light.whole.count() > 0 {
        figures.push(detail("SYN to all memory back", light.whole));
    }
    if compressed.wake.count() > 0 {
        figures.push(
            named("light wake, compressed", compressed.wake)
                .beside("light wake, plain", beside_compressed.wake)
                .target(Target::Share(COMPRESSED)),
        );
    }
    figures.extend([
        wake("light wake from disk", disk.wake),
        light_sleep,
        detail("the first light sleep", first),
        detail("stood still", light.frozen),
        deep_wake,
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
