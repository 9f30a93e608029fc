//! How a dump went.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::DUMP_LOG;
use crate::error::Error;
use crate::stats::DumpStats;

/// A finished dump. The processes are gone.
#[derive(Debug, Clone)]
pub struct DumpReport {
    /// From the call until every task had stopped.
    pub freeze: Duration,
    /// From the call until the processes were gone.
    pub total: Duration,
    /// CRIU's own measurements; missing where CRIU died after the commit.
    pub stats: Option<DumpStats>,
    /// The images.
    pub written: Written,
}

/// What a dump has written when it asks for its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Size of all images in bytes.
    pub image_bytes: u64,
    /// Bytes of memory in them.
    pub memory_bytes: u64,
    /// Address spaces in them: processes, but for those that share one.
    pub address_spaces: usize,
}

impl Written {
    pub(super) fn look(images_dir: &Path) -> Result<Self, Error> {
        let failed = |e| Error::io("list", images_dir, e);
        let (mut image_bytes, mut memory_bytes, mut address_spaces) = (0, 0, 0);
        for entry in std::fs::read_dir(images_dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let length = entry.metadata().map_err(failed)?.len();
            image_bytes += length;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b"pages-") {
                memory_bytes += length;
            }
            address_spaces += usize::from(name.as_encoded_bytes().starts_with(b"mm-"));
        }
        Ok(Self {
            image_bytes,
            memory_bytes,
            address_spaces,
        })
    }
}

/// A dump that did not happen.
#[derive(Debug, thiserror::Error)]
#[error("dump process {pid}: {tasks}")]
pub struct DumpFailure {
    /// The container's init process.
    pub pid: i32,
    /// What became of the container.
    pub tasks: Tasks,
    /// Why.
    #[source]
    pub cause: Error,
}

/// State of the container after a failed dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tasks {
    /// They run as before.
    Running,
    /// The init process is there, but not everything could be put back, or another process died;
    /// the container should be stopped.
    Damaged,
    /// The init process is gone.
    Lost,
}

impl fmt::Display for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "refused, the container runs on",
            Self::Damaged => "failed, the container could not be put back in full",
            Self::Lost => "failed, the container is gone",
        })
    }
}

impl DumpFailure {
    /// The line of CRIU's log that names the cause, where there is one.
    pub fn criu_line(&self) -> Option<&str> {
        self.cause.criu_line()
    }

    /// Where CRIU's log of a dump with `work_dir` is.
    pub fn log_path(work_dir: &Path) -> PathBuf {
        work_dir.join(DUMP_LOG)
    }
}
