//! Keeps programs off MPTCP, which CRIU cannot checkpoint.
//!
//! Go programs listen on MPTCP sockets from Go 1.24 on, without asking for it, and get plain TCP where
//! the network namespace has MPTCP switched off. So it is switched off before a container that may
//! sleep runs; whoever asks for MPTCP explicitly is refused by the kernel (`ENOPROTOOPT`).

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use podmotion_bpf::netns::{self, NetnsError};

/// Shows and sets the network namespace of the thread that opens it.
const SWITCH: &str = "/proc/sys/net/mptcp/enabled";

/// MPTCP could not be switched off.
#[derive(Debug, thiserror::Error)]
pub enum MptcpError {
    /// A file could not be used.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The container's network namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] NetnsError),
}

/// Switches MPTCP off in the network namespace of `pid`, unless that is the node's own. Blocks for
/// less than a millisecond.
pub fn switch_off(pid: i32) -> Result<(), MptcpError> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| MptcpError::File {
            operation,
            path,
            source,
        }
    };
    let namespace = File::open(&path).map_err(failed("open", &path))?;
    let found = namespace.metadata().map_err(failed("look at", &path))?;
    let own = Path::new("/proc/self/ns/net");
    let node = fs::metadata(own).map_err(failed("look at", own))?;
    if (found.dev(), found.ino()) == (node.dev(), node.ino()) {
        return Ok(());
    }
    match netns::enter(namespace.as_fd(), || fs::write(SWITCH, "0"))? {
        // A kernel without MPTCP.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed("write", Path::new(SWITCH))),
    }
}
