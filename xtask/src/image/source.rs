//! Which sources an image is made from, and when they were.

use std::path::Path;

use anyhow::{Context, Result};

use crate::process;
use crate::setup::oci;

/// Tells the time for things that are to be the same each time they are made, in seconds.
const VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// The state of a checkout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The commit, marked if files differ from it; none where there is no git repository.
    pub revision: Option<String>,
    /// Time in seconds: what [`VARIABLE`] says, else the commit's, else the beginning of time.
    pub time: u64,
}

impl Source {
    /// Asks the environment and the git repository around `root`.
    ///
    /// # Errors
    /// When the variable is no number, or git does not answer.
    pub fn of(root: &Path) -> Result<Self> {
        let said = std::env::var(VARIABLE).ok().filter(|it| !it.is_empty());
        let commit = if root.join(".git").exists() {
            Some(commit(root)?)
        } else {
            None
        };
        let time = match (said, &commit) {
            (Some(said), _) => parse_time(&said)?,
            (None, Some((_, time))) => *time,
            (None, None) => oci::EPOCH,
        };
        Ok(Self {
            revision: commit.map(|(revision, _)| revision),
            time,
        })
    }
}

fn parse_time(text: &str) -> Result<u64> {
    text.parse()
        .with_context(|| format!("{VARIABLE} is {text:?}; it must be a number of seconds"))
}

/// The commit that is checked out, and its time.
fn commit(root: &Path) -> Result<(String, u64)> {
    let shown = git(root, &["log", "-1", "--format=%H %ct"])?;
    let (revision, time) = shown
        .trim()
        .split_once(' ')
        .with_context(|| format!("git log says {shown:?}"))?;
    let changed = !git(root, &["status", "--porcelain"])?.is_empty();
    let mark = if changed { "-dirty" } else { "" };
    Ok((
        format!("{revision}{mark}"),
        time.parse()
            .with_context(|| format!("git log says {shown:?}"))?,
    ))
}

fn git(root: &Path, args: &[&str]) -> Result<String> {
    process::output(
        process::command("git")
            .current_dir(root)
            // A checkout may be another user's than root's.
            .arg("-c")
            .arg(format!("safe.directory={}", root.display()))
            .args(args),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_and_changes_to_it_are_told() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let root = dir.path();
        assert_eq!(
            Source::of(root).expect("no repository").revision,
            None,
            "nothing is invented"
        );
        let run = |args: &[&str]| git(root, args).expect("git");
        run(&["init", "--quiet"]);
        std::fs::write(root.join("file"), "1").expect("write");
        run(&["add", "file"]);
        run(&[
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@example.test",
            "commit",
            "--quiet",
            "--message=one",
            "--date=@1600000000",
        ]);
        let (clean, time) = commit(root).expect("commit");
        assert_eq!(clean.len(), 40);
        assert!(time >= 1_600_000_000);
        std::fs::write(root.join("file"), "2").expect("write");
        let (dirty, _) = commit(root).expect("commit");
        assert_eq!(dirty, format!("{clean}-dirty"));
    }

    #[test]
    fn a_time_that_is_none_is_refused() {
        assert_eq!(parse_time("17").expect("number"), 17);
        let error = parse_time("yesterday").expect_err("no number").to_string();
        assert!(
            error.contains("yesterday") && error.contains(VARIABLE),
            "{error}"
        );
    }
}
