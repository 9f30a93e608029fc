//! Why a call of the runtime failed.

use std::io;
use std::path::PathBuf;

/// Why a call of the runtime did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The binary could not be started.
    #[error("start {binary}: {source}")]
    Spawn {
        /// The binary's path or name.
        binary: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It ran and failed.
    #[error("{binary} did not terminate successfully: exit status {status}: {output}")]
    Failed {
        /// The binary's path or name.
        binary: String,
        /// Its exit status.
        status: u32,
        /// What it wrote to its standard streams, when these were not the container's.
        output: String,
        /// The last error in its log, when it wrote one.
        logged: Option<String>,
    },
    /// It could not be waited for.
    #[error("wait for {binary}: the shim is shutting down")]
    Lost {
        /// The binary's path or name.
        binary: String,
    },
    /// A file for it could not be written, or one of its files not be read.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Its output or one of its files is not what was expected.
    #[error("parse {what}: {source}")]
    Parse {
        /// The output or file.
        what: &'static str,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
}

impl RuntimeError {
    /// The error as a user should read it: the runtime's own message when it logged one.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Failed {
                logged: Some(message),
                ..
            } => message.clone(),
            other => other.to_string(),
        }
    }
}
