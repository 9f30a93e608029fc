//! Containers, each with one task that alone owns and changes its state.
//!
//! ```text
//!  Task service --Command--> driver <--Notice-- process exits, finished exec starts
//!       ^                      |
//!       +------- reply --------+--> runc, events, streams
//! ```
//!
//! A [`Container`] is only a way to send commands. Whoever waits for a process's end gets a
//! channel to wait on, so that waiting never holds up the driver. Statistics come straight from
//! the cgroup and do not involve the driver at all.

pub mod command;
mod create;
mod driver;
pub mod guest;
mod process;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use podmotion_criu_driver::spec::SpecError;
use podmotion_model::settings::SettingsError;
use tokio::sync::{mpsc, oneshot};

use crate::cgroup::Cgroup;
use crate::containers::Seat;
use crate::events::Events;
use crate::reaper::Reaper;
use crate::runtime::RuntimeError;
use crate::runtime::options::OptionsError;
use crate::sleep::Node;
use crate::stdio::{Addresses, StdioError};
use command::{Command, Reply};

pub use create::{NewContainer, RootfsMount};

/// What a failure means to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The container, or the process, is not there (any more).
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// Not in this state.
    FailedPrecondition,
    /// What was asked for is wrong in itself.
    InvalidArgument,
    /// Anything else.
    Unknown,
}

/// Why a command failed. The messages are those of containerd's own shim, which clients compare.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// No such container, or it has been deleted meanwhile.
    #[error("container not created: not found")]
    NotCreated,
    /// No such exec.
    #[error("process does not exist {exec_id}: not found")]
    NoProcess {
        /// The exec's id.
        exec_id: String,
    },
    /// There is a container of that id already, or it is being created.
    #[error("container {id}: already exists")]
    Exists {
        /// The container's id.
        id: String,
    },
    /// There is an exec of that id already.
    #[error("id {exec_id}: already exists")]
    ExecExists {
        /// The exec's id.
        exec_id: String,
    },
    /// An exec cannot start after the container's first process has ended.
    #[error("container {id} init process is not running: failed precondition")]
    InitNotRunning {
        /// The container's id.
        id: String,
    },
    /// The exec has been added but not been started.
    #[error("process not created: failed precondition")]
    ProcessNotCreated,
    /// There is nothing left to signal.
    #[error("process already finished: not found")]
    AlreadyFinished,
    /// The runtime does not know the container.
    #[error("no such container: not found")]
    NoSuchContainer,
    /// The command does not fit the state.
    #[error("cannot {action} {state}")]
    Refused {
        /// What was asked for.
        action: &'static str,
        /// The state, with the words around it.
        state: &'static str,
    },
    /// The runtime failed.
    #[error("{operation}: {}", source.message())]
    Runtime {
        /// What was tried.
        operation: &'static str,
        /// The runtime's error.
        #[source]
        source: RuntimeError,
    },
    /// The runtime could not send a signal.
    #[error("unknown error after kill: {source}")]
    Kill {
        /// The runtime's error.
        #[source]
        source: RuntimeError,
    },
    /// The system could not send a signal to an exec.
    #[error("exec kill error: unknown error after kill: {source}")]
    KillExec {
        /// The system's error.
        #[source]
        source: nix::errno::Errno,
    },
    /// The streams could not be set up.
    #[error("{operation}: {source}")]
    Stdio {
        /// What was tried.
        operation: &'static str,
        /// The cause.
        #[source]
        source: StdioError,
    },
    /// The terminal's size could not be set.
    #[error("resize terminal: {source}")]
    Resize {
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The runtime options cannot be used.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The bundle's configuration cannot be used.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// An annotation of ours cannot be used.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// What the container leaves behind when it is started anew could not be kept.
    #[error("keep the container's streams: {source}")]
    KeepStreams {
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The exec's process specification is not JSON.
    #[error("parse process specification: {source}")]
    Process {
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// The root file system could not be mounted.
    #[error("failed to mount rootfs component: {source}")]
    Mount {
        /// The cause.
        #[source]
        source: containerd_shim::Error,
    },
    /// The root file system could not be unmounted.
    #[error("failed rootfs umount: {source}")]
    Unmount {
        /// The cause.
        #[source]
        source: containerd_shim::Error,
    },
    /// A folder in the bundle could not be made, or a mounting thread not be started.
    #[error("prepare {}: {source}", path.display())]
    Prepare {
        /// What was to be made.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl ContainerError {
    /// What the failure means to the caller.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotCreated
            | Self::NoProcess { .. }
            | Self::AlreadyFinished
            | Self::NoSuchContainer => Kind::NotFound,
            Self::Exists { .. } | Self::ExecExists { .. } => Kind::AlreadyExists,
            Self::InitNotRunning { .. } | Self::ProcessNotCreated => Kind::FailedPrecondition,
            Self::Settings(_) => Kind::InvalidArgument,
            _ => Kind::Unknown,
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exited {
    /// Its pid in the shim's pid namespace; 0 if it never had one.
    pub pid: i32,
    /// Exit code, or 128 plus a signal's number.
    pub status: u32,
    /// When; never for one that did not start.
    pub at: Option<SystemTime>,
}

/// Where a process is in its life, as containerd knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Made, not started.
    Created,
    /// Started.
    Running,
    /// Frozen with its container.
    Paused,
    /// Ended.
    Stopped,
}

/// A process as `state` describes it.
#[derive(Clone, Debug)]
pub struct ProcessState {
    /// Its pid in the shim's pid namespace; 0 if it has none yet.
    pub pid: i32,
    /// Where it is in its life.
    pub phase: Phase,
    /// Addresses of its streams.
    pub stdio: Addresses,
    /// How it ended.
    pub exited: Option<Exited>,
}

/// What containers share.
#[derive(Clone)]
pub struct Shared {
    /// containerd's namespace.
    pub namespace: String,
    /// The one who waits for processes.
    pub reaper: Reaper,
    /// Where events go.
    pub events: Events,
    /// What they share for their sleep.
    pub node: Arc<Node>,
}

/// Handle to a container's driver.
#[derive(Clone)]
pub struct Container {
    /// The bundle's folder.
    pub bundle: PathBuf,
    /// The container's cgroup; none if its first process had ended before it could be looked up.
    pub cgroup: Option<Cgroup>,
    commands: mpsc::Sender<Command>,
}

impl Container {
    /// Creates a container beside `others`, starts its driver and puts it on its seat; returns its first process's pid.
    /// A caller that does not wait for the answer leaves no half-made container: what was created for it is removed
    /// again.
    ///
    /// # Errors
    /// See [`ContainerError`]. Nothing is left behind.
    pub async fn create(
        new: NewContainer,
        others: Vec<Self>,
        shared: Shared,
        seat: Seat,
    ) -> Result<i32, ContainerError> {
        let (reply, created) = oneshot::channel();
        tokio::spawn(async move {
            match create::create(new, &others, shared).await {
                Ok((container, driver)) => {
                    let pid = driver.pid();
                    match reply.send(Ok(pid)) {
                        Ok(()) => {
                            seat.take(container);
                            driver.run().await;
                        }
                        // Nobody knows of the container, so nobody would ever delete it.
                        Err(_) => driver.abandon().await,
                    }
                }
                Err(error) => {
                    drop(seat);
                    drop(reply.send(Err(error)));
                }
            }
        });
        created.await.unwrap_or(Err(ContainerError::NotCreated))
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// The command's error; [`ContainerError::NotCreated`] once the container has been deleted.
    pub async fn ask<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T, ContainerError> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(command(reply)).await.is_err() {
            return Err(ContainerError::NotCreated);
        }
        answer.await.unwrap_or(Err(ContainerError::NotCreated))
    }
}
