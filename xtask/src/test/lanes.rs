//! Runs the lanes of a phase beside each other, and counts.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};

use super::leisure::Leisure;
use super::plan::{Job, Lane, Phase, Scarce, Shared};
use super::tally::{Report, Tally};

/// How many take shared jobs.
const TAKERS: usize = 2;

/// Runs all of `phase` at the same time.
///
/// # Errors
/// When a job could not be run at all.
pub fn run(phase: Phase) -> Result<Tally> {
    let wanted = phase.lanes.iter().any(|lane| lane.at_leisure);
    let leisure = wanted.then(Leisure::new).and_then(|made| {
        made.inspect_err(|error| println!("test: nobody gives way to others: {error:#}"))
            .ok()
    });
    let leisure = leisure.as_ref();
    let queue = &Queue::new(phase.shared);
    let counted: Vec<Result<Tally>> = thread::scope(|scope| {
        let lanes = phase.lanes.into_iter();
        let mut running: Vec<_> = lanes
            .map(|lane| scope.spawn(move || run_lane(lane, leisure)))
            .collect();
        running.extend((0..TAKERS).map(|_| scope.spawn(move || queue.run())));
        let ended = running.into_iter().map(|one| match one.join() {
            Ok(counted) => counted,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect()
    });
    let mut tally = Tally::default();
    for one in counted {
        tally.add(one?);
    }
    Ok(tally)
}

/// One job after the other.
fn run_lane(lane: Lane, leisure: Option<&Leisure>) -> Result<Tally> {
    let leisure = leisure.filter(|_| lane.at_leisure);
    let mut tally = Tally::default();
    for job in lane.jobs {
        tally.add(run_job(job, leisure)?);
    }
    Ok(tally)
}

/// Jobs that are taken one by one.
struct Queue {
    state: Mutex<Waiting>,
    changed: Condvar,
}

struct Waiting {
    jobs: Vec<Shared>,
    taken: Vec<Scarce>,
}

impl Queue {
    fn new(jobs: Vec<Shared>) -> Self {
        let taken = Vec::new();
        Self {
            state: Mutex::new(Waiting { jobs, taken }),
            changed: Condvar::new(),
        }
    }

    /// Runs what nobody else has taken.
    fn run(&self) -> Result<Tally> {
        let mut tally = Tally::default();
        while let Some(Shared { job, alone_with }) = self.take() {
            let ran = run_job(job, None);
            self.give_back(alone_with);
            tally.add(ran?);
        }
        Ok(tally)
    }

    /// The next one that can be run; waits until there is one. None when there are no more.
    fn take(&self) -> Option<Shared> {
        let blocked = |waiting: &mut Waiting| !waiting.jobs.is_empty() && waiting.next().is_none();
        let waiting = self.changed.wait_while(self.lock(), blocked);
        let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
        let next = waiting.next()?;
        let taken = waiting.jobs.remove(next);
        waiting.taken.extend(taken.alone_with);
        Some(taken)
    }

    fn give_back(&self, scarce: &[Scarce]) {
        self.lock().taken.retain(|taken| !scarce.contains(taken));
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn next(&self) -> Option<usize> {
        let is_free = |scarce: &Scarce| !self.taken.contains(scarce);
        self.jobs
            .iter()
            .position(|shared| shared.alone_with.iter().all(is_free))
    }
}

/// Runs `job`, repeats what it says as it comes and counts its tests.
fn run_job(job: Job, leisure: Option<&Leisure>) -> Result<Tally> {
    let Job {
        name,
        mut command,
        single,
    } = job;
    println!("test: {name}");
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    if let Some(leisure) = leisure
        && let Err(error) = leisure.take(&child)
    {
        // This error counts; the process is this one's child and cannot be another.
        drop(child.kill());
        return Err(error);
    }
    let mut tally = count(&mut child).with_context(|| format!("cannot read what {name} says"))?;
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {name}"))?;
    if !status.success() && tally.failed == 0 {
        // It did not compile, or a test took its whole process down.
        println!("test: {name}: {status}, counted as one failure");
        tally.add(Tally::failure(&name, &status.to_string()));
    } else if single {
        tally.passed += 1;
    }
    Ok(tally)
}

/// Counts the tests that a program says it has run.
fn count(child: &mut Child) -> Result<Tally> {
    let stdout = child.stdout.take().context("there is no output")?;
    let mut report = Report::default();
    for text in BufReader::new(stdout).split(b'\n') {
        let text = text?;
        let text = String::from_utf8_lossy(&text);
        println!("{text}");
        report.read(&text);
    }
    Ok(report.tally())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

    fn job(program: &str, single: bool) -> Job {
        Job {
            name: program.to_owned(),
            command: process::command(program),
            single,
        }
    }

    #[test]
    fn a_run_that_dies_counts_as_a_failure() {
        for single in [false, true] {
            let tally = run_job(job("false", single), None).expect("ran");
            assert_eq!(tally, Tally::failure("false", "exit status: 1"));
        }
    }

    #[test]
    fn what_is_one_test_by_itself_counts_as_one() {
        let lane = Lane {
            jobs: vec![job("true", true), job("true", false), job("false", true)],
            at_leisure: false,
        };
        let phase = Phase {
            lanes: vec![lane],
            shared: Vec::new(),
        };
        let tally = run(phase).expect("ran");
        assert_eq!((tally.passed, tally.failed), (1, 1));
    }

    fn shared(name: &str, alone_with: &'static [Scarce]) -> Shared {
        let job = job(name, true);
        Shared { job, alone_with }
    }

    #[test]
    fn what_is_scarce_has_one_at_a_time_and_the_rest_goes_on() {
        const BOTH: &[Scarce] = &[Scarce::Machine, Scarce::Cluster];
        let queue = Queue::new(vec![
            shared("first", &[Scarce::Machine]),
            shared("second", BOTH),
            shared("third", &[Scarce::Cluster]),
            shared("fourth", &[]),
        ]);
        let take = || queue.take().map(|shared| shared.job.name);
        assert_eq!(take().as_deref(), Some("first"));
        assert_eq!(take().as_deref(), Some("third"), "the second has to wait");
        assert_eq!(take().as_deref(), Some("fourth"));
        queue.give_back(&[Scarce::Machine]);
        thread::scope(|scope| {
            let waiting = scope.spawn(take);
            queue.give_back(&[Scarce::Cluster]);
            assert_eq!(waiting.join().unwrap().as_deref(), Some("second"));
        });
        assert_eq!(take(), None);
    }

    #[test]
    fn shared_jobs_are_all_run_whatever_becomes_of_them() {
        let names = ["true", "false", "/no/such/program", "true"];
        let phase = |names: &[&str]| Phase {
            lanes: Vec::new(),
            shared: names
                .iter()
                .map(|name| shared(name, &[Scarce::Machine]))
                .collect(),
        };
        let tally = run(phase(&names[..2])).expect("ran");
        assert_eq!((tally.passed, tally.failed), (1, 1));
        assert!(run(phase(&names)).is_err(), "one cannot be run");
    }
}
