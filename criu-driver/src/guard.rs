//! Something is done before CRIU is gone, even when it is killed.
//!
//! A CRIU that dies lets go of the tasks that it has stopped, wherever they are: with registers of
//! CRIU's, in code of CRIU's, with sockets in repair mode. The kernel stops it once more before
//! (see [`Watch`]), and what has to be done with its tasks is done then.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use podmotion_inject::{End, Watch};
use rustix::process::Signal;

use crate::error::Error;
use crate::launch::Process;

/// Watches one CRIU. Dropping it ends that CRIU and waits until what is to be done then is done.
///
/// Nobody may wait for CRIU as a child meanwhile: who does takes the stop away.
pub(crate) struct Guard<T> {
    worker: Option<JoinHandle<Option<T>>>,
    criu: OwnedFd,
}

impl<T: Send + 'static> Guard<T> {
    /// From now on `at_end` is called when CRIU is about to end, on a thread of its own; CRIU ends
    /// once it returns.
    pub(crate) fn start(
        process: &Process,
        at_end: impl FnOnce(End) -> T + Send + 'static,
    ) -> Result<Self, Error> {
        let criu = process.pidfd().try_clone().map_err(Error::Guard)?;
        let pid = process.pid();
        let (tell, told) = mpsc::channel();
        let worker = thread::Builder::new()
            .name("criu-guard".to_owned())
            .spawn(move || {
                let mut watch = match Watch::begin(pid) {
                    Ok(watch) => watch,
                    // It has done nothing yet.
                    Err(podmotion_inject::Error::Gone { .. }) => return None,
                    Err(e) => {
                        // The receiver waits for it.
                        let _ = tell.send(e);
                        return None;
                    }
                };
                drop(tell);
                match watch.wait() {
                    Ok(end) => end.map(at_end),
                    Err(e) => {
                        log::warn!("watch CRIU: {e}");
                        None
                    }
                }
            })
            .map_err(Error::Guard)?;
        let guard = Self {
            worker: Some(worker),
            criu,
        };
        match told.recv() {
            Ok(e) => Err(Error::Guard(io::Error::other(e))),
            Err(mpsc::RecvError) => Ok(guard),
        }
    }

    /// Ends CRIU where it has not ended yet. What was done then; `None` where it could not be.
    pub(crate) fn end(mut self) -> Option<T> {
        self.join()
    }
}

impl<T> Guard<T> {
    fn join(&mut self) -> Option<T> {
        let worker = self.worker.take()?;
        // Fails when it has ended.
        let _ = rustix::process::pidfd_send_signal(&self.criu, Signal::KILL);
        worker.join().ok().flatten()
    }
}

impl<T> Drop for Guard<T> {
    fn drop(&mut self) {
        self.join();
    }
}
