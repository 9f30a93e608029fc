//! What can be asked of a container's driver.

use tokio::sync::{oneshot, watch};

use super::guest::Lease;
use super::{ContainerError, Exited, ProcessState};
use crate::stdio::Addresses;

/// Where the answer to a command goes. The asker may have gone away.
pub type Reply<T> = oneshot::Sender<Result<T, ContainerError>>;

/// The end of a process, for everyone who waits for it.
pub type ExitWatch = watch::Receiver<Option<Exited>>;

/// Which of a container's processes: its first one, or an exec by its id.
pub type ExecId = Option<String>;

/// A further process to be added to a container.
#[derive(Debug)]
pub struct NewExec {
    /// Its id.
    pub id: String,
    /// Addresses of its streams.
    pub stdio: Addresses,
    /// JSON of an OCI process.
    pub process: Vec<u8>,
}

/// A process as `pids` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedProcess {
    /// Pid in the shim's pid namespace.
    pub pid: i32,
    /// Id of the exec that it is.
    pub exec_id: ExecId,
}

/// Commands to a driver, each with the way back for its answer.
#[derive(Debug)]
pub enum Command {
    /// Run the created process; answers its pid.
    Start { exec_id: ExecId, reply: Reply<i32> },
    /// What a process is and does.
    State {
        exec_id: ExecId,
        reply: Reply<ProcessState>,
    },
    /// Add a process, without running it.
    Exec { new: NewExec, reply: Reply<()> },
    /// Signal a process, or all of them.
    Kill {
        exec_id: ExecId,
        signal: u32,
        all: bool,
        reply: Reply<()>,
    },
    /// Freeze all processes.
    Pause { reply: Reply<()> },
    /// Thaw all processes.
    Resume { reply: Reply<()> },
    /// Set a terminal's size.
    Resize {
        exec_id: ExecId,
        columns: u16,
        rows: u16,
        reply: Reply<()>,
    },
    /// End a process's input.
    CloseIo { exec_id: ExecId, reply: Reply<()> },
    /// Change resource limits to the JSON of an OCI `linux.resources`.
    Update {
        resources: Vec<u8>,
        reply: Reply<()>,
    },
    /// Let another container join the PID namespace: answers the pid of a process in it, and what keeps
    /// the container awake.
    Lend { reply: Reply<(i32, Lease)> },
    /// All processes in the container.
    Pids { reply: Reply<Vec<ListedProcess>> },
    /// How to wait for a process's end.
    Wait {
        exec_id: ExecId,
        reply: Reply<ExitWatch>,
    },
    /// Remove a process that has ended, or the whole container; answers how and with which pid it
    /// ended.
    Delete {
        exec_id: ExecId,
        reply: Reply<Exited>,
    },
}
