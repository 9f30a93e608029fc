//! Tests that passed and failed, as their programs say.

use std::fmt;

use anyhow::Result;

/// Of what a failed test says, so many lines are said again in the end.
const LINES: usize = 12;
/// And of each line so many characters.
const WIDTH: usize = 400;

/// Tests that passed and failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    /// What is known of those that failed.
    pub failures: Vec<Failure>,
}

/// A test that failed, with the beginning of its reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failure {
    test: String,
    reason: Vec<String>,
}

impl Tally {
    /// The test `name` has failed, because of `reason`.
    pub fn failure(name: &str, reason: &str) -> Self {
        let mut failure = Failure {
            test: name.to_owned(),
            ..Failure::default()
        };
        reason.lines().for_each(|line| failure.add(line));
        Self {
            passed: 0,
            failed: 1,
            failures: vec![failure],
        }
    }

    /// Adds what another one has counted.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
    }
}

impl Failure {
    fn add(&mut self, line: &str) {
        if self.reason.len() < LINES && !line.trim().is_empty() {
            self.reason.push(line.chars().take(WIDTH).collect());
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed: {}", self.test)?;
        self.reason
            .iter()
            .try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// Something that is one test by itself.
pub fn single(name: &str, body: impl FnOnce() -> Result<()>) -> Tally {
    println!("test: {name}");
    match body() {
        Ok(()) => Tally {
            passed: 1,
            ..Tally::default()
        },
        Err(error) => {
            println!("test: {name}: {error:#}");
            Tally::failure(name, &format!("{error:#}"))
        }
    }
}

/// What a program of tests prints, line by line.
#[derive(Debug, Default)]
pub struct Report {
    tally: Tally,
    /// The lines that come now say why the last of the failures is one.
    reasons: bool,
}

impl Report {
    /// The next line.
    pub fn read(&mut self, line: &str) {
        let failed = line
            .strip_prefix("---- ")
            .and_then(|line| line.strip_suffix(" ----"));
        if let Some(result) = parse(line) {
            self.tally.add(result);
            self.reasons = false;
        } else if let Some(test) = failed {
            self.reasons = true;
            self.tally.failures.push(Failure {
                test: test.trim_end_matches(" stdout").to_owned(),
                reason: Vec::new(),
            });
        } else if line == "failures:" {
            self.reasons = false;
        } else if let (true, Some(failure)) = (self.reasons, self.tally.failures.last_mut()) {
            failure.add(line);
        }
    }

    /// What it has said.
    pub fn tally(self) -> Tally {
        self.tally
    }
}

/// Reads `test result: ok. 11 passed; 0 failed; ...`.
fn parse(line: &str) -> Option<Tally> {
    let (_, counts) = line
        .trim()
        .strip_prefix("test result: ")?
        .split_once(". ")?;
    let number = |what: &str| {
        counts
            .split("; ")
            .find_map(|count| count.strip_suffix(what)?.trim().parse().ok())
    };
    Some(Tally {
        passed: number("passed")?,
        failed: number("failed")?,
        failures: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Tally {
        let mut report = Report::default();
        lines.iter().for_each(|line| report.read(line));
        report.tally()
    }

    #[test]
    fn results_are_read_from_good_and_bad_runs() {
        let good = "test result: ok. 11 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let bad = "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.52s";
        let tally = read(&["test some::name ... ok", good, bad]);
        assert_eq!((tally.passed, tally.failed), (13, 3));
    }

    #[test]
    fn reasons_of_failures_are_kept_and_no_list_of_names() {
        let tally = read(&[
            "test first ... FAILED",
            "failures:",
            "",
            "---- first stdout ----",
            "it is broken",
            "",
            "very",
            "---- second ----",
            "this too",
            "",
            "failures:",
            "    first",
            "test result: FAILED. 2 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.52s",
            "something else",
        ]);
        let said: Vec<_> = tally.failures.iter().map(Failure::to_string).collect();
        assert_eq!(
            said,
            [
                "failed: first\n    it is broken\n    very",
                "failed: second\n    this too"
            ]
        );
    }

    #[test]
    fn a_single_test_counts_as_one() {
        assert_eq!(single("it", || Ok(())).passed, 1);
        let failed = single("it", || anyhow::bail!("broken"));
        assert_eq!(failed, Tally::failure("it", "broken"));
        assert_eq!(failed.failed, 1);
    }

    #[test]
    fn of_a_long_reason_the_beginning_is_said() {
        let failed = Tally::failure("it", &"x\n".repeat(100));
        let said = failed.failures.first().map(Failure::to_string);
        assert_eq!(said.map(|said| said.lines().count()), Some(1 + LINES));
    }
}
