//! What the exit code says.

use std::process::ExitCode;

use crate::select::SelectError;

/// The end of `podmotion --help`, of its manual page and of `docs/cli.md`.
pub const DOCS: &str = "\
Exit codes:

- 0: done
- 1: failed: a shim has refused, a check has found something, or something could not be read or removed
- 2: the command line is wrong
- 3: what is shown is not complete: a shim did not answer
- 4: no such container, or more than one";

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All that was asked for.
    Done,
    /// It failed, or part of it.
    Failed,
    /// Done for those who answered.
    Incomplete,
    /// A container's name fits none, or several.
    NoSuchContainer,
}

impl Exit {
    /// The one for a command that ended with an error.
    pub fn of(error: &anyhow::Error) -> Self {
        if error.is::<SelectError>() {
            Self::NoSuchContainer
        } else {
            Self::Failed
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            // 2 is clap's.
            Exit::Incomplete => 3,
            Exit::NoSuchContainer => 4,
        })
    }
}
