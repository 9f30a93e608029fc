//! In which moment of a sleep or a wake a container is, seen from outside.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{PATIENCE, is_frozen};
use rustix::process::{Pid, Signal, kill_process};

/// What was going on in the moment of a kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Moment {
    /// It runs, and all its memory is there.
    Awake,
    /// Frozen; its threads are not stopped yet.
    StandingStill,
    /// Its threads are stopped, it is given a userfaultfd, its memory is copied.
    Copying,
    /// It gives its memory up, by injected calls.
    Taking,
    /// Its memory is out.
    Asleep,
    /// A wake was asked for, and nothing is back yet.
    Waking,
    /// Memory that the last wakes have needed comes back.
    Prefetching,
    /// It runs, and memory is still out.
    Filling,
}

impl Moment {
    pub(super) const ALL: [Self; 8] = [
        Self::Awake,
        Self::StandingStill,
        Self::Copying,
        Self::Taking,
        Self::Asleep,
        Self::Waking,
        Self::Prefetching,
        Self::Filling,
    ];

    /// Whether no page of it is missing. In what comes between, some are.
    pub(super) fn is_whole(self) -> bool {
        matches!(self, Self::Awake | Self::StandingStill)
    }

    /// Whether its threads are in the hands of a tracer, with which they are killed.
    pub(super) fn is_traced(self) -> bool {
        matches!(self, Self::Copying | Self::Taking)
    }
}

/// One container, to be looked at.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) pid: i32,
    pub(super) group: &'a str,
    /// Where a wake was asked for: its private memory before that, in KiB.
    pub(super) asleep_kib: Option<u64>,
}

impl View<'_> {
    /// The moment. An error when the container is gone.
    pub(super) fn moment(&self) -> Result<Moment> {
        let status = proc(self.pid, "status")?;
        let traced = !status.lines().any(|line| line == "TracerPid:\t0");
        let frozen = is_frozen(self.group)?;
        let Memory { there_kib, out } = memory(self.pid)?;
        Ok(match (traced, frozen, out) {
            (true, _, false) => Moment::Copying,
            (true, _, true) => Moment::Taking,
            (false, true, false) => Moment::StandingStill,
            (false, false, false) => Moment::Awake,
            (false, false, true) => Moment::Filling,
            (false, true, true) => match self.asleep_kib {
                None => Moment::Asleep,
                Some(then) if there_kib > then => Moment::Prefetching,
                Some(_) => Moment::Waking,
            },
        })
    }
}

/// A process's private memory.
pub(super) struct Memory {
    /// Of it, what is there, in KiB.
    pub(super) there_kib: u64,
    /// Some of it is registered with a userfaultfd.
    pub(super) out: bool,
}

pub(super) fn memory(pid: i32) -> Result<Memory> {
    let mut memory = Memory {
        there_kib: 0,
        out: false,
    };
    // Counted page by page, unlike the numbers in `status`.
    for line in proc(pid, "smaps")?.lines() {
        if let Some(size) = line.strip_prefix("Anonymous:") {
            memory.there_kib += size
                .trim()
                .trim_end_matches(" kB")
                .parse::<u64>()
                .with_context(|| format!("parse {line:?}"))?;
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            memory.out |= flags.split_whitespace().any(|flag| flag == "um");
        }
    }
    Ok(memory)
}

fn proc(pid: i32, name: &str) -> Result<String> {
    let path = format!("/proc/{pid}/{name}");
    fs::read_to_string(&path).with_context(|| format!("read {path}"))
}

/// Whether its first thread waits for a page, whether it has touched it itself or a system call of its has.
pub(super) fn waits_for_a_page(pid: i32) -> bool {
    proc(pid, "stack").is_ok_and(|stack| stack.contains("handle_userfault"))
}

/// Whether it has ended.
pub(super) fn has_ended(pid: i32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
        || proc(pid, "status").map_or(true, |status| {
            status.lines().any(|line| line == "State:\tZ (zombie)")
        })
}

/// Stops all threads of a process, and waits until they have stopped.
pub(super) fn stop(process: Pid) -> Result<()> {
    kill_process(process, Signal::STOP).context("stop a process")?;
    let deadline = Instant::now() + PATIENCE;
    let path = format!("/proc/{}/task", process.as_raw_nonzero());
    loop {
        let mut running = Vec::new();
        for thread in fs::read_dir(&path).with_context(|| format!("list {path}"))? {
            // One that ends meanwhile has stopped for good.
            let stat = fs::read_to_string(thread?.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit(") ").next().unwrap_or_default();
            if !state.is_empty() && !state.starts_with(['T', 'Z', 'X']) {
                running.push(stat);
            }
        }
        if running.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "does not stop: {running:?}");
        thread::yield_now();
    }
}

/// Waits until `reached`: there is no event for what it looks at.
pub(super) fn wait(what: &str, mut reached: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !reached()? {
        if Instant::now() > deadline {
            bail!("no {what} in {PATIENCE:?}");
        }
        thread::yield_now();
    }
    Ok(())
}
