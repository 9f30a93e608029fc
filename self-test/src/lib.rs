//! The node's self-test: a real container is put to sleep and woken, through this node's containerd and shim.
//!
//! ```text
//!  run ── CRI: how are pods of the handler run? ──> handler, snapshotter, cgroup driver
//!   │
//!   ├── containerd, namespace "podmotion-self-test"
//!   │      sandbox (pause) ── network, IPC, UTS ──┐         for each depth:
//!   │      app (serve) ───────────────────────────┘         request -> 1, sleep, request -> 2
//!   │
//!   ├── shim's socket: sleep, inspect
//!   └── report: /run/podmotion/self-test.json
//! ```
//!
//! The two containers are made as CRI makes a pod's, with the runtime, its options and the snapshotter that CRI has for
//! the handler, but with containerd's own API and in a containerd namespace of their own: a kubelet stops each pod
//! sandbox of CRI's that is not one of its pods within two seconds. For the same reason there is no CNI network:
//! the client is a process in the sandbox, and its packets pass the gate at `lo`.
//!
//! Whatever happens, everything is removed at the end, and what a killed run has left at the beginning: all that is in
//! the containerd namespace. Only a run that is dropped before its end, or killed, leaves something to the next.

#![forbid(unsafe_code)]

mod client;
mod containerd;
mod handler;
mod memory;
mod pod;
mod report;
mod scenario;
mod spec;

use std::io;
use std::path::{Path, PathBuf};

pub use podmotion_proto::report::SelfTest as Report;
pub use report::{ReportError, read as read_report};

/// Where the self-test finds and leaves things. Paths are as this process sees them, unless said otherwise.
#[derive(Clone, Debug)]
pub struct Options {
    /// containerd's socket.
    pub containerd: PathBuf,
    /// The folder with the shims' sockets.
    pub shims: PathBuf,
    /// The report.
    pub report: PathBuf,
    /// The CRI runtime handler that is tested.
    pub handler: String,
    /// `podmotion-self-test-app`, as the node sees it.
    pub app: PathBuf,
    /// The control group that the containers' own are in, in the form of the node's driver: the root or `system.slice`
    /// if there is none. Both are there without anybody making them.
    pub cgroup_parent: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self::below(Path::new("/"))
    }
}

impl Options {
    /// The usual places of a node whose root is seen at `host_root`.
    pub fn below(host_root: &Path) -> Self {
        Self {
            containerd: host_root.join("run/containerd/containerd.sock"),
            shims: host_root.join("run/podmotion/shims"),
            report: host_root.join("run/podmotion/self-test.json"),
            handler: "podmotion".to_owned(),
            app: PathBuf::from("/opt/podmotion/bin/podmotion-self-test-app"),
            cgroup_parent: None,
        }
    }
}

/// Why there is no report of a passed self-test.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node has not passed. The report is written.
    #[error("self-test: {}", .0.error.as_deref().unwrap_or("not passed"))]
    NotPassed(Box<Report>),
    /// Another one is under way.
    #[error("self-test: another one is under way, it has locked {}", .0.display())]
    UnderWay(PathBuf),
    /// It cannot be known whether another one is under way.
    #[error("self-test: lock {}: {source}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The report is not there.
    #[error("self-test: {0}")]
    Report(#[from] ReportError),
}

/// Runs the self-test and writes its report. It takes about two seconds, and up to some minutes where the node does not
/// answer. It has to be polled to its end.
///
/// # Errors
/// [`Error::NotPassed`] with the report, in which the failed step is the last but one; others if nothing was tested or
/// the report could not be written.
pub async fn run(options: &Options) -> Result<Report, Error> {
    let _lock = report::lock(&options.report)?;
    let report = scenario::run(options).await;
    report::write(&report, &options.report)?;
    match report.passed {
        true => Ok(report),
        false => Err(Error::NotPassed(Box::new(report))),
    }
}
