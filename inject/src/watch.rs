//! The moment in which a process begins to end.

use std::io;
use std::marker::PhantomData;

use crate::error::Error;
use crate::procfs;
use crate::sys::{self, Resume, Stop};

/// A process of one thread that is held at the beginning of its end, however it comes to it: its
/// descriptors are still open and processes that it traces are still stopped. `SIGKILL` is no
/// exception: the kernel stops a process in `do_exit` (`PTRACE_EVENT_EXIT`), and no second `SIGKILL`
/// ends that stop (`prepare_signal` drops signals for a process that is ending).
///
/// Belongs to the thread that made it. Signals of the process take a detour through that thread, so
/// it should be in [`wait`](Self::wait) all the time. When it is dropped, the process ends.
///
/// Among signals a process can slip through: the kernel ends whatever stop it finds when one is passed on,
/// and that is the last one if `SIGKILL` has come just before (seen three times in a thousand, with signals
/// all the time). Who must not miss the end has them blocked.
pub struct Watch {
    pid: i32,
    held: bool,
    /// Requests of another thread would fail.
    thread: PhantomData<*const ()>,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    signal: i32,
}

impl End {
    /// The signal that ends it; `None` where it exits by itself.
    pub fn signal(self) -> Option<i32> {
        (self.signal != 0).then_some(self.signal)
    }
}

impl Watch {
    /// Watches a process, which goes on running.
    ///
    /// # Errors
    /// [`Error::Gone`] when it has ended, [`Error::Refused`] when it cannot be traced.
    pub fn begin(pid: i32) -> Result<Self, Error> {
        match sys::seize_for_exit(pid) {
            Ok(()) => Ok(Self {
                pid,
                held: false,
                thread: PhantomData,
            }),
            Err(_) if procfs::has_ended(pid) => Err(Error::Gone { pid }),
            Err(source) => {
                let tid = pid;
                Err(Error::Refused { pid, tid, source })
            }
        }
    }

    /// Waits for the beginning of its end, and holds it there. `None`: it has ended.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn wait(&mut self) -> Result<Option<End>, Error> {
        let tid = self.pid;
        let failed = |operation| {
            move |source| Error::Ptrace {
                operation,
                tid,
                source,
            }
        };
        while !self.held {
            let going_on = match sys::wait_stop(tid) {
                Ok(Some(Stop::Exit)) => {
                    self.held = true;
                    Ok(())
                }
                Ok(Some(Stop::Signal(signal))) => sys::resume(tid, Resume::Free, signal),
                Ok(Some(Stop::Trap)) => sys::stay_stopped(tid),
                Ok(Some(Stop::Syscall)) => sys::resume(tid, Resume::Free, 0),
                Ok(None) => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
                Err(e) => return Err(failed("wait for")(e)),
            };
            match going_on {
                // Killed in that moment: the next stop is its last.
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                other => other.map_err(failed("resume"))?,
            }
        }
        let status = sys::event_message(tid).map_err(failed("ask about the end of"))?;
        Ok(Some(End {
            signal: i32::try_from(status & 0x7f).unwrap_or_default(),
        }))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.held {
            // Fails only when it has ended.
            let _ = sys::detach(self.pid);
        }
    }
}
