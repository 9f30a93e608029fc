//! Tests that passed and failed, as their programs say.

use anyhow::Result;

/// Tests that passed and failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
}

impl Tally {
    /// One test that has failed.
    pub const FAILURE: Self = Self {
        passed: 0,
        failed: 1,
    };

    /// Adds what another one has counted.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Something that is one test by itself.
pub fn single(name: &str, body: impl FnOnce() -> Result<()>) -> Tally {
    println!("test: {name}");
    match body() {
        Ok(()) => Tally {
            passed: 1,
            failed: 0,
        },
        Err(error) => {
            println!("test: {name}: {error:#}");
            Tally::FAILURE
        }
    }
}

/// Reads `test result: ok. 11 passed; 0 failed; ...`.
pub fn parse(line: &str) -> Option<Tally> {
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
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_from_good_and_bad_runs() {
        let good = "test result: ok. 11 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(
            parse(good),
            Some(Tally {
                passed: 11,
                failed: 0
            })
        );
        let bad = "test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.52s";
        assert_eq!(
            parse(bad),
            Some(Tally {
                passed: 2,
                failed: 3
            })
        );
        assert_eq!(parse("test some::name ... ok"), None);
    }

    #[test]
    fn a_single_test_counts_as_one() {
        assert_eq!(single("it", || Ok(())).passed, 1);
        assert_eq!(single("it", || anyhow::bail!("broken")).failed, 1);
    }
}
