//! The one owner of `SIGCHLD`.
//!
//! The shim is a child subreaper: runc's own processes, the containers' processes that runc
//! leaves behind, and orphans from containers without a pid namespace all end up here. One task
//! waits for all of them and hands each exit to whoever watches that pid.
//!
//! Threads of the shim also trace processes (`podmotion-inject`), and a stop of one of those is told to
//! whoever of the process waits for any child, whatever it asked for. So the reaper looks before it
//! takes anything, and takes exits only.
//!
//! A container's process can exit before runc has told the shim its pid. While somebody holds an
//! [`Expectation`], exits that nobody watches are kept; with the last one dropped they are
//! forgotten, so that orphans cost nothing.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use log::warn;
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::sys::{Child as Look, look_at_child};

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
        let _starts = podmotion_criu_driver::hold_starts();
        loop {
            match look_at_child(None) {
                Ok(Some(Look::Ended(pid, status))) => self.take(pid, status),
                // Whoever is told of a stop is told of nothing else until that is taken.
                Ok(Some(Look::Stopped)) => return self.collect_each(),
                Ok(None) | Err(Errno::ECHILD) => return,
                Err(Errno::EINTR) => {}
                Err(error) => {
                    warn!("wait for children: {error}");
                    return;
                }
            }
        }
    }

    /// As `collect`, child by child.
    fn collect_each(&self) {
        for pid in children() {
            if let Ok(Some(Look::Ended(pid, status))) = look_at_child(Some(pid)) {
                self.take(pid, status);
            }
        }
    }

    fn take(&self, pid: i32, status: u32) {
        // Fails when somebody else has.
        let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        self.report(Exit {
            pid,
            status,
            at: SystemTime::now(),
        });
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

/// Children of all threads of this process.
fn children() -> Vec<i32> {
    // A thread that has ended has left its children to another.
    let lists = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| {
            let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
            pids.collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

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

    // One test for all that really waits for children: it takes every child of the test process, so two
    // such tests must not run at the same time.
    #[tokio::test]
    async fn real_children() {
        let reaper = Reaper::start().unwrap();
        let (_, exit) = reaper
            .spawn(Command::new("sh").args(["-c", "exit 42"]))
            .unwrap();
        assert_eq!(exit.await.unwrap().status, 42);
        let (child, exit) = reaper.spawn(Command::new("sleep").arg("60")).unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert_eq!(children(), [pid.as_raw()]);
        let (begin, begun) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel();
        let tracer = std::thread::spawn(move || {
            let mut seized = podmotion_inject::Seized::begin(&[pid.as_raw()]).unwrap();
            let stat = format!("/proc/{pid}/stat");
            while !fs::read_to_string(&stat).unwrap().contains(") t ") {
                std::thread::yield_now();
            }
            begin.send(()).unwrap();
            goes_on.recv().unwrap();
            seized.wait_stopped(Duration::from_secs(5))
        });
        begun.recv().unwrap();
        // The stop is there, and is not the reaper's.
        let mut other = Command::new("sh");
        let (_, ended) = reaper.spawn(other.args(["-c", "exit 43"])).unwrap();
        assert_eq!(ended.await.unwrap().status, 43);
        go_on.send(()).unwrap();
        tracer.join().unwrap().unwrap();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        assert_eq!(exit.await.unwrap().status, 137);
    }
}
