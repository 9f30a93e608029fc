//! Many containers asleep: what each of them keeps, and how long they take to wake all at once.

use std::fs;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use podmotion_integration_tests::{
    Client, Container, Depth, Node, cgroup_folders, own_processes, status_number,
};

use super::figure::{Figure, Target};
use super::manager;
use super::memory::{PORT, counter};
use crate::numbers::{Samples, ms};
use crate::report::Progress;

/// How often they are woken. The first time nothing is known of what that needs.
const ROUNDS: u64 = 8;
/// Most that a sleeping container may keep, everything counted, in MB.
const KEPT_MB: f64 = 3.0;
/// Most milliseconds until the last of a hundred has its first byte.
const LAST_MS: f64 = 500.0;
/// A thread for blocking work ends when it has had nothing to do for ten seconds.
pub(super) const SETTLED: Duration = Duration::from_secs(12);

/// Measures with that many containers.
pub fn measure(node: &Node, count: usize, progress: &Progress) -> Result<Vec<Figure>> {
    progress.begin(&format!("{count} containers: start"));
    node.sleep(Depth::Light)?;
    let mut containers = Vec::new();
    for number in 0..count {
        progress.detail(&format!("{count} containers: start of {}", number + 1));
        let container = node.run(counter(0))?;
        container.stdout()?.wait_for("listening")?;
        containers.push(container);
    }
    let addresses = containers
        .iter()
        .map(|container| container.address(PORT))
        .collect::<Result<Vec<_>>>()?;
    let (mut last, mut answers) = (Samples::default(), Samples::default());
    let mut first = Samples::default();
    for round in 1..=ROUNDS {
        for (number, container) in containers.iter().enumerate() {
            progress.detail(&format!("{count} containers: sleep of {}", number + 1));
            container.sleep()?;
        }
        let times = wake_all(&addresses, round)?;
        let slowest = times.iter().copied().map(ms).fold(0.0, f64::max);
        if round == 1 {
            first.add(slowest);
            continue;
        }
        last.add(slowest);
        times.into_iter().for_each(|time| answers.add_time(time));
    }
    for container in &containers {
        container.sleep()?;
    }
    let groups = containers
        .iter()
        .map(Container::cgroup)
        .collect::<Result<Vec<_>>>()?;
    let kept = Kept::of(&groups)?;
    let manager = manager::resident(node, count)?;
    progress.end(&format!("{count} containers woken at once"));

    let mut last = Figure::new(
        format!("{count} containers woken at once, last first byte"),
        "ms",
        last,
    );
    if count == 100 {
        last = last.target(Target::AtMost(LAST_MS));
    }
    let detail = |what: &str, bytes: f64| Figure::new(format!("  {what}"), "MB", bytes / 1e6);
    Ok(vec![
        last,
        Figure::new("  every first byte", "ms", answers),
        Figure::new("  the last one, the first time they wake", "ms", first),
        Figure::new("a Python server asleep keeps", "MB", kept.all() / 1e6)
            .target(Target::AtMost(KEPT_MB)),
        detail("its control group: kernel", kept.kernel),
        detail("its control group: the rest", kept.group - kept.kernel),
        detail("its shim, shared pages divided", kept.shim),
        detail("its keeper, shared pages divided", kept.keeper),
        detail("page tables of shim and keeper", kept.tables),
        manager,
    ])
}

/// Asks all of them in one moment, `count` times by now. The times until each had its first byte.
pub(super) fn wake_all(addresses: &[SocketAddr], count: u64) -> Result<Vec<Duration>> {
    let start = &Barrier::new(addresses.len());
    thread::scope(|scope| {
        let threads: Vec<_> = addresses
            .iter()
            .map(|&address| {
                scope.spawn(move || -> Result<(Instant, Duration)> {
                    start.wait();
                    let began = Instant::now();
                    let answer = Client::default().get(address, "/")?;
                    let body: serde_json::Value =
                        serde_json::from_str(&answer.body).context("parse the answer")?;
                    ensure!(body["count"] == count, "{address}: {body} at {count}");
                    Ok((began, answer.first_byte))
                })
            })
            .collect();
        let times: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a panic"))))
            .collect::<Result<_>>()?;
        let began = times.iter().map(|(began, _)| *began).min();
        let began = began.context("no container")?;
        // From the first SYN on, whosever it was.
        Ok(times
            .into_iter()
            .map(|(own, time)| own - began + time)
            .collect())
    })
}

/// What a sleeping container keeps, on average, in bytes.
pub(super) struct Kept {
    /// Memory that is accounted to its control group.
    group: f64,
    /// Of it, the kernel's: page tables, stacks, sockets.
    kernel: f64,
    shim: f64,
    keeper: f64,
    tables: f64,
}

impl Kept {
    /// Of who is in these control groups; with all shims that there are. Waits until they have given back what falling
    /// asleep took.
    pub(super) fn of<S: AsRef<str>>(groups: &[S]) -> Result<Self> {
        thread::sleep(SETTLED);
        let count = groups.len() as f64;
        let (mut group, mut kernel) = (0, 0);
        for one in groups {
            let (all, own) = accounted(one.as_ref())?;
            group += all;
            kernel += own;
        }
        let (mut shim, mut keeper, mut tables) = (0, 0, 0);
        for process in own_processes()? {
            let kept = if process.is_keeper() {
                &mut keeper
            } else if process.is("containerd-shim-podmotion-v1") {
                &mut shim
            } else {
                continue;
            };
            *kept += proportional_kib(process.pid)?;
            tables += status_number(process.pid, "VmPTE")?;
        }
        Ok(Self {
            group: group as f64 / count,
            kernel: kernel as f64 / count,
            shim: shim as f64 * 1024.0 / count,
            keeper: keeper as f64 * 1024.0 / count,
            tables: tables as f64 * 1024.0 / count,
        })
    }

    pub(super) fn all(&self) -> f64 {
        self.group + self.processes()
    }

    /// Of it, what is accounted to the control group.
    pub(super) fn group(&self) -> f64 {
        self.group
    }

    /// Of it, the shim's and its child's.
    pub(super) fn processes(&self) -> f64 {
        self.shim + self.keeper + self.tables
    }
}

/// Bytes that are accounted to a control group, and those of them that are the kernel's own.
fn accounted(group: &str) -> Result<(u64, u64)> {
    for folder in cgroup_folders(group)? {
        let number = |name: &str| -> Option<u64> {
            fs::read_to_string(folder.join(name))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        if let (Some(all), Some(kernel)) = (
            number("memory.usage_in_bytes"),
            number("memory.kmem.usage_in_bytes"),
        ) {
            return Ok((all, kernel));
        }
        if let Some(all) = number("memory.current") {
            let stat = fs::read_to_string(folder.join("memory.stat"))
                .with_context(|| format!("read the memory of {group}"))?;
            let kernel = stat
                .lines()
                .find_map(|line| line.strip_prefix("kernel ")?.parse().ok());
            return Ok((all, kernel.unwrap_or_default()));
        }
    }
    Err(anyhow!("no memory of {group} is accounted"))
}

/// A process's resident memory, shared pages divided by those who share them (`Pss`), in KiB.
fn proportional_kib(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .with_context(|| format!("no Pss in {path}"))
}
