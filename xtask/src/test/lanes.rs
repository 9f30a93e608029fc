//! Runs the lanes of a phase beside each other, and counts.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::thread;

use anyhow::{Context, Result};

use super::leisure::Leisure;
use super::plan::{Job, Lane, Phase};
use super::tally::{Report, Tally};

/// Runs the lanes of `phase` at the same time.
///
/// # Errors
/// When a job could not be run at all.
pub fn run(phase: Phase) -> Result<Tally> {
    let wanted = phase.iter().any(|lane| lane.at_leisure);
    let leisure = wanted.then(Leisure::new).and_then(|made| {
        made.inspect_err(|error| println!("test: nobody gives way to others: {error:#}"))
            .ok()
    });
    let leisure = leisure.as_ref();
    let counted: Vec<Result<Tally>> = thread::scope(|scope| {
        let running: Vec<_> = phase
            .into_iter()
            .map(|lane| scope.spawn(move || run_lane(lane, leisure)))
            .collect();
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
        let tally = run(vec![lane]).expect("ran");
        assert_eq!((tally.passed, tally.failed), (1, 1));
    }
}
