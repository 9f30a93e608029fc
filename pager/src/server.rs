//! The thread that owns the userfaultfds and fills memory.
//!
//! ```text
//!            start        set_moving        set_moving(false)     fill           all memory back
//!   (none) --------> Guard ------> Moving ----------------> Guard -----> Filling ---------> ended
//!                      ^                                              hold |    |
//!                      +---------------------------------------------------+    | image unusable
//!                                                                               v
//!                                                       Failed: fills nothing more, gives nothing up
//! ```
//!
//! In every state but `Failed` a fault is answered. `Guard` does that alone: processes that are
//! stopped fault too, when the kernel writes to their memory for them. In `Moving` pages are being
//! taken away by `MADV_DONTNEED`, which waits for this thread to read of each mapping. `Guard` is also
//! when the image can be compressed, if nothing else is to be done: who reads it is who changes it.
//!
//! Invariants:
//! - The thread has a descriptor table that it shares with its keeper and with nobody else
//!   ([`crate::sys::keep`]). A descriptor of a userfaultfd that memory can be missing behind exists only there. So
//!   does what the thread does with descriptors: it logs nothing and prints nothing.
//! - Dropping the handle changes nothing for the processes: the thread goes on until all memory is
//!   back or all address spaces are gone.

mod ahead;
mod busy;
mod compress;
mod events;
mod fill;
mod forks;
mod turn;
mod worker;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

use crate::image::ImageError;
use crate::runs::RunMap;
use crate::sys::keep;
use crate::working_set::PageOf;
use crate::{FillPolicy, FillStats};
pub(crate) use worker::{Start, Worker};

/// What the thread could not do.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The image cannot be read, or is not what was written.
    #[error("the image cannot be used")]
    Image(#[from] ImageError),
    /// The kernel refused.
    #[error("{operation}{}", process(*pid))]
    System {
        /// What was tried.
        operation: &'static str,
        /// The process it was for, where there is one.
        pid: Option<i32>,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The thread ended without an answer.
    #[error("the thread that fills memory ended early")]
    Ended,
}

fn process(pid: Option<i32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" process {pid}"))
}

impl ServerError {
    pub(crate) fn system(
        operation: &'static str,
        pid: Option<i32>,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System {
            operation,
            pid,
            source,
        }
    }
}

/// How a fill ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// All memory is back; nothing is registered any more.
    Complete(Complete),
    /// Pages are missing, and whoever touches one waits.
    Failed(ServerError),
}

/// What is known when all memory is back.
#[derive(Debug)]
pub(crate) struct Complete {
    /// Where the content of each process's pages is in the image.
    pub(crate) known: Vec<(i32, RunMap)>,
    pub(crate) stats: FillStats,
    pub(crate) faults: Vec<PageOf>,
}

type Call = Box<dyn FnOnce(&mut Worker) + Send>;

/// A thread that is being started. It needs its creator's descriptors at first, so dropping this waits.
#[derive(Debug)]
pub(crate) struct Starting {
    /// None once it is ready.
    server: Option<Server>,
    started: mpsc::Receiver<Result<i32, ServerError>>,
}

impl Starting {
    /// Waits until the thread and its keeper are there.
    pub(crate) fn ready(mut self) -> Result<Server, ServerError> {
        let keeper = self.started.recv().map_err(|_| ServerError::Ended)??;
        let mut server = self.server.take().ok_or(ServerError::Ended)?;
        server.keeper = keeper;
        Ok(server)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if self.server.is_some() {
            // An error is that of a thread that has ended.
            let _ = self.started.recv();
        }
    }
}

/// Handle of the thread. Readable ([`AsFd`]) when it has an outcome.
#[derive(Debug)]
pub(crate) struct Server {
    /// None only while it is dropped.
    calls: Option<mpsc::Sender<Call>>,
    wake: OwnedFd,
    ended: OwnedFd,
    outcome: Arc<Mutex<Option<Outcome>>>,
    keeper: i32,
}

impl Drop for Server {
    fn drop(&mut self) {
        // The thread notices only when it is awake that nobody will call.
        self.calls = None;
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Server {
    /// Starts the thread and its keeper, without waiting for them.
    pub(crate) fn start(start: Start) -> Result<Starting, ServerError> {
        let failed = ServerError::system;
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = event().map_err(|e| failed("make an event", None)(e.into()))?;
        let ended = event().map_err(|e| failed("make an event", None)(e.into()))?;
        let outcome = Arc::new(Mutex::new(None));
        let (calls, received) = mpsc::channel::<Call>();
        let (ready, started) = mpsc::channel();
        // Numbers, since the thread's copies are other descriptors under the same numbers. They
        // are open here until the thread has its own table.
        let numbers = (wake.as_raw_fd(), ended.as_raw_fd());
        let result = Arc::clone(&outcome);
        thread::Builder::new()
            .name("pager".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                let (wake, ended) = numbers;
                let worker = keep::leave_table(&[wake, ended])
                    .map_err(failed("leave the descriptor table", None))
                    .and_then(|()| Worker::new(start));
                match worker {
                    Ok(mut worker) => {
                        let _ = ready.send(Ok(worker.keeper()));
                        worker.run(&received, keep::adopt(wake), keep::adopt(ended), &result);
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            })
            .map_err(failed("make a thread", None))?;
        let server = Self {
            calls: Some(calls),
            wake,
            ended,
            outcome,
            keeper: 0,
        };
        Ok(Starting {
            server: Some(server),
            started,
        })
    }

    /// Pid of the process that keeps the descriptors.
    pub(crate) fn keeper(&self) -> i32 {
        self.keeper
    }

    /// Has the thread do something and returns its answer. Neither may have a descriptor in it: its
    /// number means something else in the thread's table.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Worker) -> T + Send + 'static,
    ) -> Result<T, ServerError> {
        let answered = self.begin(work)?;
        answered.recv().map_err(|_| ServerError::Ended)
    }

    /// The same without waiting for the answer.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Worker) -> T + Send + 'static,
    ) -> Result<mpsc::Receiver<T>, ServerError> {
        let (answer, answered) = mpsc::channel();
        let call: Call = Box::new(move |worker| {
            let _ = answer.send(work(worker));
        });
        let calls = self.calls.as_ref().ok_or(ServerError::Ended)?;
        calls.send(call).map_err(|_| ServerError::Ended)?;
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        Ok(answered)
    }

    /// Begins to fill in the background.
    pub(crate) fn fill(&self, policy: FillPolicy) -> Result<(), ServerError> {
        self.call(move |worker| worker.fill(policy))
    }

    /// Waits for the outcome and takes it.
    pub(crate) fn wait(&self) -> Outcome {
        use rustix::event::{PollFd, PollFlags, poll};
        loop {
            let taken = self
                .outcome
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(outcome) = taken {
                return outcome;
            }
            let mut fds = [PollFd::new(&self.ended, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    let error = ServerError::system("wait for the fill", None)(e.into());
                    return Outcome::Failed(error);
                }
            }
        }
    }
}
