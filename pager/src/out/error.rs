//! Why memory does not leave.

use std::io;

use crate::image::ImageError;
use crate::server::ServerError;

/// Memory could not be moved out.
#[derive(Debug, thiserror::Error)]
pub enum OutError {
    /// The image could not be written.
    #[error("the image cannot be written")]
    Image(#[from] ImageError),
    /// The thread that fills memory failed.
    #[error("memory could not be filled again")]
    Server(#[from] ServerError),
    /// A system call could not be run in a process.
    #[error("{operation} process {pid}")]
    Inject {
        /// What was tried.
        operation: &'static str,
        /// The process.
        pid: i32,
        /// What went wrong.
        #[source]
        source: podmotion_inject::Error,
    },
    /// A system call that was run in a process failed.
    #[error("{operation} process {pid}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// The process.
        pid: i32,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The system refused something about a process.
    #[error("{operation} process {pid}")]
    Proc {
        /// What was tried.
        operation: &'static str,
        /// The process.
        pid: i32,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A device, the kernel or the program itself relies on memory staying where it is now.
    #[error("process {pid} has {what}, which needs its memory to stay in place")]
    Pinned {
        /// The process.
        pid: i32,
        /// The descriptor or mapping that shows it.
        what: String,
    },
    /// The process has seccomp filters that cannot be passed.
    #[error("process {pid} has seccomp filters, and the kernel does not let a tracer pass them")]
    Seccomp {
        /// The process.
        pid: i32,
    },
    /// It was given up while memory was copied.
    #[error("given up")]
    GivenUp,
    /// No memory for a buffer.
    #[error("get memory for a buffer")]
    Memory {
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn proc(operation: &'static str, pid: i32) -> impl FnOnce(io::Error) -> OutError {
    move |source| OutError::Proc {
        operation,
        pid,
        source,
    }
}
