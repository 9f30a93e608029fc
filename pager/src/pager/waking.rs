//! From missing memory to processes that run.

use std::sync::mpsc;
use std::time::Duration;

use super::*;

/// The thread that fills memory wakes the processes.
///
/// Dropping it does not stop that.
#[derive(Debug)]
pub struct Waking<T> {
    pager: Pager,
    server: Server,
    woken: mpsc::Receiver<Option<Woken<T>>>,
}

/// Processes that were woken.
#[derive(Debug)]
pub struct Woken<T> {
    /// Time for what the last wakes needed.
    pub prefetch: Duration,
    /// What having them run gave.
    pub ran: T,
}

impl Moved {
    /// Begins a wake, without waiting for it: what the last wakes needed is filled, then `run` is called, which is to have
    /// the processes run, then the rest is filled.
    ///
    /// `run` is called by the thread that answers faults, since each thread on the way costs a wake time. So it must not
    /// wait for the processes or log anything, and a descriptor from outside means something else in it.
    ///
    /// # Errors
    /// When that thread is gone. The processes must be killed.
    pub fn begin_wake<T: Send + 'static>(
        self,
        policy: FillPolicy,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Waking<T>, FillFailed> {
        let plan = self.plan;
        let woken = self
            .server
            .begin(move |worker| worker.wake(&plan, policy, run));
        match woken {
            Ok(woken) => Ok(Waking {
                pager: self.pager,
                server: self.server,
                woken,
            }),
            Err(error) => Err(FillFailed::new(error, self.server)),
        }
    }
}

impl<T> Waking<T> {
    /// Waits until the processes run.
    ///
    /// # Errors
    /// When the image cannot be used: they do not run, and must be killed.
    pub fn wait(self) -> Result<(Filling, Woken<T>), FillFailed> {
        let Self {
            pager,
            server,
            woken,
        } = self;
        let error = match woken.recv() {
            Ok(Some(woken)) => return Ok((Filling { pager, server }, woken)),
            Ok(None) => match server.wait() {
                Outcome::Failed(error) => error,
                Outcome::Complete(_) => ServerError::Ended,
            },
            Err(_) => ServerError::Ended,
        };
        Err(FillFailed::new(error, server))
    }
}
