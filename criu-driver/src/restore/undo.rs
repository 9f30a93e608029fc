//! Restores that come to nothing: what they have made goes, and nobody notices.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rust_criu::rust_criu_protobuf::rpc::Criu_req;
use rustix::event::EventfdFlags;
use rustix::process::Signal;

use super::Restore;
use crate::error::Error;
use crate::freezer::{self, Freezer, FreezerError};
use crate::ghosts;
use crate::guard::Guard;
use crate::heal;
use crate::launch::{self, Process};
use crate::rpc::{self, Connection};
use crate::subject::Subject;

/// Time for CRIU to end after its answer, and for killed processes to go.
const END_TIME: Duration = Duration::from_secs(10);

/// Time for tasks to freeze before they are killed, so that none sends a last packet.
const DISCARD_FREEZE_TIME: Duration = Duration::from_millis(100);

/// Kills a restored container whose fill failed so that its images can be restored again: the peers
/// of its TCP connections do not notice, and its addresses are free.
///
/// # Errors
/// When the cgroup cannot be used.
pub fn discard(subject: &Subject) -> Result<(), FreezerError> {
    kill_silently(subject, None)?;
    wait_all(subject, None);
    Ok(())
}

/// Kills what is in the subject's cgroups, but not `spare`. Sockets that have left repair mode by then go back into it:
/// otherwise their end is told to the peers, and is in the way of the next restore.
fn kill_silently(subject: &Subject, spare: Option<i32>) -> Result<(), FreezerError> {
    let freezer = subject.freezer.as_deref().map(Freezer::new).transpose()?;
    if let Some(freezer) = &freezer {
        // A task that waits for its memory does not freeze.
        let _ = freezer.freeze(DISCARD_FREEZE_TIME);
        heal::silence(&freezer.processes()?);
    }
    kill_all(subject, spare);
    // A frozen task of cgroup version 1 does not die.
    freezer.map_or(Ok(()), |freezer| freezer.thaw())
}

/// Processes in the subject's cgroups, all but `spare`.
fn processes(subject: &Subject, spare: Option<i32>) -> Vec<OwnedFd> {
    let mut pids = Vec::new();
    for cgroup in &subject.cgroups {
        if let Err(e) = freezer::collect(cgroup, &mut pids) {
            ::log::warn!("list the processes in {}: {e}", cgroup.display());
        }
    }
    pids.sort_unstable();
    pids.dedup();
    pids.retain(|pid| Some(*pid) != spare);
    pids.into_iter().flat_map(launch::pidfd).collect()
}

fn kill_all(subject: &Subject, spare: Option<i32>) {
    for pidfd in processes(subject, spare) {
        // It fails only on a process that is gone.
        let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

fn wait_all(subject: &Subject, spare: Option<i32>) {
    processes(subject, spare).iter().for_each(end);
}

fn end(pidfd: &OwnedFd) {
    // It fails only on a process that is gone.
    let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
    let _ = launch::wait_exit(pidfd, Instant::now() + END_TIME);
    launch::reap(pidfd);
}

impl Restore<'_> {
    /// Talks to CRIU and waits for its end. When it is killed it is held, and so are all tasks made by
    /// then, until it is known whether it had done its work: what is half made is ended before CRIU
    /// lets go of it.
    pub(super) fn guarded(
        &mut self,
        connection: &Connection,
        process: &Process,
        message: &Criu_req,
        deadline: Instant,
    ) -> Result<(), Error> {
        let freezer = self.freezer()?;
        let ending = rustix::event::eventfd(0, EventfdFlags::CLOEXEC);
        let ending = Arc::new(ending.map_err(|e| Error::Guard(e.into()))?);
        let (decide, decided) = mpsc::channel::<Infallible>();
        let (end, frozen) = (Arc::clone(&ending), freezer.clone());
        let guard = Guard::start(process, move |how| {
            if how.signal().is_none() {
                return;
            }
            // A task that waits for its memory does not freeze.
            if let Some(freezer) = frozen {
                let _ = freezer.freeze(DISCARD_FREEZE_TIME);
            }
            let _ = rustix::io::write(&*end, &1u64.to_ne_bytes());
            // An error: the sender is dropped.
            let _ = decided.recv();
        })?;
        // Dropped before the guard, which waits for it.
        let decide = decide;
        let restored = match connection.send(message) {
            Err(e) if !rpc::is_gone(&e) => Err(e),
            _ => self.converse(connection, process, deadline, ending.as_fd()),
        };
        if restored.is_err()
            && let Err(e) = kill_silently(self.subject, self.request.spare)
        {
            ::log::warn!("end what a restore has made: {e}");
        }
        drop(decide);
        let ended = match restored {
            Ok(()) => launch::wait_exit(process.pidfd(), Instant::now() + END_TIME),
            Err(_) => Ok(true),
        };
        guard.end();
        if let Some(freezer) = freezer {
            freezer.thaw()?;
        }
        restored?;
        ended.map(drop).map_err(Error::Transport)
    }

    fn freezer(&self) -> Result<Option<Freezer>, Error> {
        let freezer = self.subject.freezer.as_deref().map(Freezer::new);
        Ok(freezer.transpose()?)
    }

    /// Kills what was made. CRIU does so itself when it refuses, but not when it dies.
    pub(super) fn clean_up(&mut self) {
        let spare = self.request.spare;
        // A container that is asleep has no process: all others there come from this restore.
        if let Err(e) = kill_silently(self.subject, spare) {
            ::log::warn!("end what a restore has made: {e}");
        }
        self.daemon = None;
        if let Some((_, pidfd)) = &self.init {
            end(pidfd);
        }
        kill_all(self.subject, spare);
        wait_all(self.subject, spare);
        if let Err(e) = ghosts::remove(self.subject, self.request.images_dir) {
            ::log::warn!("remove what a restore left in the container's files: {e}");
        }
    }
}
