//! Why a conversation with CRIU failed.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::freezer::FreezerError;
use crate::log::LogErrors;

/// Failure of one CRIU run, the same kinds for each request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no executable file at the configured path.
    #[error("no CRIU at {}", path.display())]
    MissingBinary {
        /// The configured path.
        path: PathBuf,
        /// What looking at it gave.
        #[source]
        source: io::Error,
    },
    /// The process could not be started.
    #[error("start {}: {step}", path.display())]
    Spawn {
        /// CRIU's path.
        path: PathBuf,
        /// What was being prepared.
        step: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A system call around CRIU failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which object.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The cgroup could not be frozen or thawed.
    #[error(transparent)]
    Freezer(#[from] FreezerError),
    /// The container's tasks could not be stopped, or not be put back.
    #[error(transparent)]
    Stop(#[from] podmotion_inject::Error),
    /// CRIU could not be watched.
    #[error("watch CRIU")]
    Guard(#[source] io::Error),
    /// The socket to CRIU broke.
    #[error("talk to CRIU")]
    Transport(#[source] io::Error),
    /// CRIU sent something that is no answer to the request.
    #[error("CRIU's answer does not decode")]
    Protocol(#[source] protobuf::Error),
    /// An image that CRIU has written is not as expected.
    #[error("image {} does not decode", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// The decoder's answer.
        #[source]
        source: protobuf::Error,
    },
    /// The images do not go together with what the processes miss.
    #[error("add what process {pid} misses to the images: {reason}")]
    Absent {
        /// The process, on the host.
        pid: i32,
        /// How it shows.
        reason: &'static str,
    },
    /// What the processes miss cannot be had.
    #[error("read what process {pid} misses")]
    AbsentContent {
        /// The process, on the host.
        pid: i32,
        /// Why.
        #[source]
        source: crate::dump::Veto,
    },
    /// CRIU answered with another kind of message than asked for.
    #[error("CRIU answered with message type {got}")]
    UnexpectedAnswer {
        /// Number of the message's type in CRIU's `rpc.proto`.
        got: i32,
    },
    /// CRIU ended without an answer: killed, crashed, or unable to start.
    #[error("CRIU ended without an answer{}", log.suffix())]
    Exited {
        /// Error lines it had logged until then, its standard error included.
        log: LogErrors,
    },
    /// CRIU refused, with the reason in its log.
    #[error("CRIU refused (errno {errno}){}", log.suffix())]
    Refused {
        /// CRIU's `cr_errno`, 0 where it gave none.
        errno: i32,
        /// The error lines.
        log: LogErrors,
    },
    /// CRIU refused, and there is no room for its images, nor for what its log would say.
    #[error("No space left on the disk of {}{}", directory.display(), log.suffix())]
    DiskFull {
        /// Where the images go.
        directory: PathBuf,
        /// The error lines.
        log: LogErrors,
    },
    /// The container uses something that CRIU cannot dump.
    #[error("process {pid} uses {what}, which CRIU cannot dump{}", log.suffix())]
    Unsupported {
        /// What it is.
        what: &'static str,
        /// The process, on the host.
        pid: i32,
        /// CRIU's error lines.
        log: LogErrors,
    },
    /// No answer in time; CRIU was ended.
    #[error("CRIU took longer than {after:?}{}", log.suffix())]
    TimedOut {
        /// The time it had.
        after: Duration,
        /// Error lines it had logged until then.
        log: LogErrors,
    },
    /// The caller changed its mind.
    #[error("aborted by the caller")]
    Aborted,
    /// The images are written, but the caller cannot use them.
    #[error("the checkpoint could not be completed")]
    Vetoed(#[source] crate::dump::Veto),
    /// The process to dump is not there any more.
    #[error("process {pid} is gone")]
    NoProcess {
        /// Its pid on the host.
        pid: i32,
        /// What opening it gave.
        #[source]
        source: io::Error,
    },
    /// The lazy-pages daemon did not come up or did not receive the address spaces.
    #[error("lazy pages: {step}{}", log.suffix())]
    LazyPages {
        /// How far it came.
        step: &'static str,
        /// The daemon's error lines.
        log: LogErrors,
    },
}

impl Error {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io {
            operation,
            path: path.into(),
            source: source.into(),
        }
    }

    /// The line of CRIU's log that names the cause, where there is one.
    pub fn criu_line(&self) -> Option<&str> {
        match self {
            Self::Exited { log }
            | Self::Refused { log, .. }
            | Self::DiskFull { log, .. }
            | Self::Unsupported { log, .. }
            | Self::TimedOut { log, .. }
            | Self::LazyPages { log, .. } => log.first.as_deref(),
            _ => None,
        }
    }
}
