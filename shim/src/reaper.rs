//! The one owner of `SIGCHLD`.
//!
//! The shim is a child subreaper: runc's own processes, the containers' processes that runc
//! leaves behind, and orphans from containers without a pid namespace all end up here. One task
//! waits for all of them and hands each exit to whoever watches that pid.
//!
//! A container's process can exit before runc has told the shim its pid. While somebody holds an
//! [`Expectation`], exits that nobody watches are kept; with the last one dropped they are
//! forgotten, so that orphans cost nothing.

use std::collections::HashMap;
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use log::warn;
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Pid in the shim's pid namespace.
    pub pid: i32,
    /// Exit code, or 128 plus the number of the signal that ended it.
    pub status: u32,
    /// When the shim learnt of it.
    pub at: SystemTime,
}

#[derive(Default)]
struct Table {
    watched: HashMap<i32, Vec<oneshot::Sender<Exit>>>,
    early: HashMap<i32, Exit>,
    expectations: usize,
}

/// Handle to the reaper; clones share one table.
#[derive(Clone, Default)]
pub struct Reaper {
    table: Arc<Mutex<Table>>,
}

/// While one exists, exits that nobody watches yet are kept.
pub struct Expectation {
    reaper: Reaper,
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut table = self.reaper.lock();
        table.expectations -= 1;
        if table.expectations == 0 {
            table.early = HashMap::new();
        }
    }
}

impl Reaper {
    /// Installs the signal handler and starts the waiting task.
    ///
    /// # Errors
    /// Fails when the signal handler cannot be installed. Must be called inside a tokio runtime;
    /// nothing else in the process may wait for children after it.
    pub fn start() -> io::Result<Self> {
        let reaper = Self::default();
        let mut signals = signal(SignalKind::child())?;
        let waiting = reaper.clone();
        tokio::spawn(async move {
            // Children of before the handler was there.
            waiting.collect();
            while signals.recv().await.is_some() {
                waiting.collect();
            }
        });
        Ok(reaper)
    }

    /// Keeps unwatched exits from now on until the returned value is dropped.
    #[must_use]
    pub fn expect(&self) -> Expectation {
        self.lock().expectations += 1;
        Expectation {
            reaper: self.clone(),
        }
    }

    /// The exit of `pid`, which must be a child (or an orphan inherited) of this process that is
    /// still running, or whose exit came while an [`Expectation`] was held. Otherwise the
    /// receiver never resolves.
    #[must_use]
    pub fn watch(&self, pid: i32) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.lock();
        match table.early.remove(&pid) {
            // A receiver that is gone again needs no answer.
            Some(exit) => {
                let _ = sender.send(exit);
            }
            None => table.watched.entry(pid).or_default().push(sender),
        }
        receiver
    }

    /// Starts a command and watches its process.
    ///
    /// # Errors
    /// The error of the spawn.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Child, oneshot::Receiver<Exit>)> {
        let expectation = self.expect();
        let child = command.spawn()?;
        let exit = self.watch(child.id().cast_signed());
        drop(expectation);
        Ok((child, exit))
    }

    fn collect(&self) {
        loop {
            let (pid, status) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code.cast_unsigned()),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, 128 + (signal as i32).cast_unsigned())
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => {
                    warn!("wait for children: {error}");
                    return;
                }
            };
            self.report(Exit {
                pid: pid.as_raw(),
                status,
                at: SystemTime::now(),
            });
        }
    }

    fn report(&self, exit: Exit) {
        let mut table = self.lock();
        if let Some(watchers) = table.watched.remove(&exit.pid) {
            for watcher in watchers {
                // A watcher that gave up needs no answer.
                let _ = watcher.send(exit);
            }
        } else if table.expectations > 0 {
            table.early.insert(exit.pid, exit);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // The table is consistent between any two of its statements.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(pid: i32) -> Exit {
        Exit {
            pid,
            status: 3,
            at: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn exit_before_watch_is_kept_while_expected() {
        let reaper = Reaper::default();
        let expectation = reaper.expect();
        reaper.report(exit(7));
        assert_eq!(reaper.watch(7).try_recv(), Ok(exit(7)));
        drop(expectation);
    }

    #[test]
    fn orphans_leave_nothing_behind() {
        let reaper = Reaper::default();
        reaper.report(exit(7));
        let outer = reaper.expect();
        drop(reaper.expect());
        reaper.report(exit(8));
        assert_eq!(reaper.lock().early.len(), 1);
        drop(outer);
        assert!(reaper.lock().early.is_empty());
        assert!(reaper.watch(8).try_recv().is_err());
    }

    #[test]
    fn every_watcher_is_told() {
        let reaper = Reaper::default();
        let (mut first, mut second) = (reaper.watch(7), reaper.watch(7));
        reaper.report(exit(7));
        assert_eq!(first.try_recv(), Ok(exit(7)));
        assert_eq!(second.try_recv(), Ok(exit(7)));
    }

    // One test for all that really waits for children: waitpid(-1) takes every child of the test
    // process, so two such tests must not run at the same time.
    #[tokio::test]
    async fn real_children() {
        let reaper = Reaper::start().unwrap();
        let (_, exit) = reaper
            .spawn(Command::new("sh").args(["-c", "exit 42"]))
            .unwrap();
        assert_eq!(exit.await.unwrap().status, 42);
        let (child, exit) = reaper.spawn(Command::new("sleep").arg("60")).unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        assert_eq!(exit.await.unwrap().status, 137);
    }
}
