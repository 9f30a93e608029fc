//! What can go wrong.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Processes could not be stopped, or not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Somebody else traces the thread.
    #[error("thread {tid} of process {pid} is traced by process {tracer} already")]
    Traced {
        /// The process.
        pid: i32,
        /// Its thread.
        tid: i32,
        /// Who traces it.
        tracer: i32,
    },
    /// The system does not let this process trace that one.
    #[error("thread {tid} of process {pid} cannot be traced")]
    Refused {
        /// The process.
        pid: i32,
        /// Its thread.
        tid: i32,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The thread runs code of another architecture than this program: a 32-bit process.
    #[error("thread {tid} of process {pid} runs code of another architecture")]
    Foreign {
        /// The process.
        pid: i32,
        /// Its thread.
        tid: i32,
    },
    /// A handler in the process answers the thread's system calls (`PR_SET_SYSCALL_USER_DISPATCH`).
    #[error("thread {tid} of process {pid} answers its system calls itself")]
    Dispatched {
        /// The process.
        pid: i32,
        /// Its thread.
        tid: i32,
    },
    /// The thread did not stop, or its system call did not end. It is let go when the tracing thread
    /// ends, not before; in a system call its process is killed when it is to be let go.
    #[error("thread {tid} of process {pid} did not stop within {within:?}")]
    Stuck {
        /// The process.
        pid: i32,
        /// Its thread.
        tid: i32,
        /// The time it had.
        within: Duration,
    },
    /// The process has ended, or the thread.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// The system call that was to be run ended in a signal instead.
    #[error("a system call in thread {tid} of process {pid} ended in signal {signal}")]
    Fault {
        /// The process.
        pid: i32,
        /// Its thread.
        tid: i32,
        /// The signal, which was not delivered.
        signal: i32,
    },
    /// Nothing that the process has mapped for execution has a system call instruction in it.
    #[error("process {pid} has no system call instruction")]
    NoInstruction {
        /// The process.
        pid: i32,
    },
    /// A `ptrace` request failed.
    #[error("{operation} thread {tid}")]
    Ptrace {
        /// What was tried.
        operation: &'static str,
        /// The thread.
        tid: i32,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The process's memory cannot be read or written there.
    #[error("{operation} {address:#x} of process {pid}")]
    Memory {
        /// What was tried.
        operation: &'static str,
        /// The process.
        pid: i32,
        /// Where.
        address: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A file below `/proc` cannot be used.
    #[error("{operation} {}", path.display())]
    Proc {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// No timer, or no thread.
    #[error("{operation}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}
