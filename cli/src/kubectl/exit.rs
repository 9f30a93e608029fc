//! What the exit code says.

use std::process::ExitCode;

use crate::pods::PodError;

/// The end of `kubectl podmotion --help`, of its manual page and of `docs/kubectl.md`.
pub const DOCS: &str = "\
Exit codes:

- 0: done
- 1: failed: a container stays as it is, a check has found something, a right is missing, or the API server cannot be asked
- 2: the command line is wrong
- 3: what is shown is not complete: the manager of a node, or one of its shims, did not answer
- 4: no such pod, or Podmotion does not run it";

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All that was asked for.
    Done,
    /// It failed, or part of it.
    Failed,
    /// Done for those who answered.
    Incomplete,
    /// There is no such pod, or none of ours.
    NoSuchPod,
}

impl Exit {
    /// The one for a command that ended with an error.
    pub fn of(error: &anyhow::Error) -> Self {
        if error.is::<PodError>() {
            Self::NoSuchPod
        } else {
            Self::Failed
        }
    }

    /// The one of a command that did several things: what went wrong most.
    pub fn and(self, other: Self) -> Self {
        let weight = |exit: &Self| match exit {
            Self::Done => 0,
            Self::Incomplete => 1,
            Self::NoSuchPod => 2,
            Self::Failed => 3,
        };
        [self, other].into_iter().max_by_key(weight).unwrap_or(self)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            // 2 is clap's.
            Exit::Incomplete => 3,
            Exit::NoSuchPod => 4,
        })
    }
}
