//! Filling memory after a restore.
//!
//! CRIU's lazy-pages daemon holds a userfaultfd for each restored process and copies pages in, on
//! demand and in the background. When the last descriptor of such a userfaultfd closes, the kernel
//! gives zero pages for what is still missing. So before a restored process runs for the first
//! time, copies of all of them are taken here and kept until the daemon is known to have finished:
//! should the daemon die, whoever touches a missing page blocks, and can be killed.
//!
//! Two gaps are left:
//!
//! - A process that forks during the fill gets a userfaultfd that only the daemon holds. It is
//!   zero-filled if the daemon is killed then, for the moment until the container is.
//! - The daemon takes what a process does to its mappings in the order in which it reads of it, and
//!   the kernel can report what two threads did in another order than that in which it took effect:
//!   an unmapping that is reported late takes away what has been moved to the same addresses since
//!   (`handle_remove` in CRIU's `uffd.c`). The pager puts these in order (`pager/src/changes.rs`).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};

use crate::criu::Criu;
use crate::error::Error;
use crate::heal;
use crate::launch::{self, Process};
use crate::log::{self, LogErrors};

/// Name of the daemon's log in the work directory.
pub const LAZY_LOG: &str = "lazy-pages.log";

/// Memory of a restored container that is still being filled in.
///
/// Readable ([`AsFd`]) once the fill has ended one way or the other. Dropping it does not stop the
/// fill. Until it has ended the images must stay.
#[derive(Debug)]
pub struct Fill {
    ended: OwnedFd,
    result: mpsc::Receiver<Result<Duration, FillFailure>>,
    daemon: i32,
}

/// The daemon ended before all memory was there. Processes of the container that touch missing
/// memory block for good: the container must be killed.
#[derive(Debug, thiserror::Error)]
#[error("lazy-pages daemon {daemon} ended after {done} of {total} address spaces{}", log.suffix())]
pub struct FillFailure {
    /// Pid of the daemon.
    pub daemon: i32,
    /// Address spaces that were filled.
    pub done: usize,
    /// Address spaces there are.
    pub total: usize,
    /// The daemon's error lines.
    pub log: LogErrors,
    /// Keeps what touches missing memory blocked, instead of letting it read zeros. Drop it when
    /// no process of the container is left.
    pub guard: FillGuard,
}

/// Copies of the userfaultfds of a container whose fill failed.
#[derive(Debug)]
pub struct FillGuard {
    _copies: Vec<OwnedFd>,
}

impl AsFd for Fill {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Fill {
    /// Pid of the daemon.
    pub fn daemon(&self) -> i32 {
        self.daemon
    }

    /// Waits for the end of the fill. Returns how long it took from the moment the container ran.
    ///
    /// # Errors
    /// When the daemon ended early; the container must be killed then.
    pub fn wait(self) -> Result<Duration, FillFailure> {
        self.result.recv().unwrap_or_else(|_| {
            Err(FillFailure {
                daemon: self.daemon,
                done: 0,
                total: 0,
                log: LogErrors::default(),
                guard: FillGuard {
                    _copies: Vec::new(),
                },
            })
        })
    }
}

/// A daemon that waits for a restore.
pub(crate) struct Daemon {
    process: Process,
    ready: OwnedFd,
    work_dir: PathBuf,
    copies: Vec<OwnedFd>,
    /// For the fill: two ends of its event, and the daemon's process.
    ended: OwnedFd,
    signal: OwnedFd,
    pidfd: OwnedFd,
}

impl Daemon {
    /// Starts it; [`wait_ready`](Self::wait_ready) says when it listens.
    pub(crate) fn start(criu: &Criu, images_dir: &Path, work_dir: &Path) -> Result<Self, Error> {
        let (ready, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| Error::io("make a pipe for", work_dir, e))?;
        // The socket of an earlier restore is in the way.
        match fs::remove_file(work_dir.join("lazy-pages.socket")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove socket in", work_dir, e));
            }
            _ => {}
        }
        let mut arguments: Vec<OsString> = vec!["lazy-pages".into(), "--images-dir".into()];
        arguments.push(images_dir.into());
        arguments.push("--work-dir".into());
        arguments.push(work_dir.into());
        arguments.push("--log-file".into());
        arguments.push(LAZY_LOG.into());
        // Only at this level does the log say that an address space is complete.
        arguments.extend(["-v4", "--status-fd", "3"].map(OsString::from));
        let failed = |operation| move |e: io::Error| Error::io(operation, work_dir, e);
        let ended = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|e| failed("make an event for")(e.into()))?;
        let signal = ended.try_clone().map_err(failed("copy an event for"))?;
        let process = criu.launch(arguments, vec![theirs], &[], None, None)?;
        let pidfd = process.pidfd().try_clone();
        Ok(Self {
            pidfd: pidfd.map_err(failed("copy a descriptor for"))?,
            process,
            ready,
            work_dir: work_dir.to_owned(),
            copies: Vec::new(),
            ended,
            signal,
        })
    }

    pub(crate) fn wait_ready(&self, deadline: Instant) -> Result<(), Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        // A helper of a daemon that was killed can keep the pipe open.
        let mut fds = [
            PollFd::new(&self.ready, PollFlags::IN),
            PollFd::new(self.process.pidfd(), PollFlags::IN),
        ];
        let mut byte = [0];
        let polled = poll(&mut fds, timeout.as_ref());
        // End of file instead of the byte: the daemon is gone.
        match polled {
            Ok(1..)
                if !fds[0].revents().is_empty()
                    && rustix::io::read(&self.ready, &mut byte) == Ok(1) =>
            {
                Ok(())
            }
            _ => Err(self.failed("the daemon did not start")),
        }
    }

    /// Takes copies of the userfaultfds, `count` of them. To be called while the restored
    /// processes are all made and none runs yet. They reach the daemon through a socket, so it can
    /// be a moment until it has them; there is no event for that.
    pub(crate) fn take_copies(&mut self, count: usize, deadline: Instant) -> Result<(), Error> {
        loop {
            let copies = heal::matching(self.process.pid(), "anon_inode:[userfaultfd]")
                .map_err(|_| self.failed("the daemon ended during the restore"))?;
            if copies.len() >= count {
                self.copies = copies;
                return Ok(());
            }
            let gone = launch::wait_exit(
                self.process.pidfd(),
                Instant::now() + Duration::from_micros(200),
            );
            if !matches!(gone, Ok(false)) {
                return Err(self.failed("the daemon ended during the restore"));
            }
            if Instant::now() >= deadline {
                return Err(self.failed("the daemon did not receive all address spaces"));
            }
        }
    }

    /// From here on the container runs, and an error must not end the daemon: what is missing would read as
    /// zeros until the container is killed.
    pub(crate) fn into_fill(self) -> Result<Fill, Error> {
        let started = Instant::now();
        let Self {
            process,
            work_dir,
            copies,
            ended,
            signal,
            pidfd,
            ..
        } = self;
        let (sender, result) = mpsc::channel();
        let daemon = process.pid();
        process.leave();
        let log_path = work_dir.join(LAZY_LOG);
        thread::Builder::new()
            .name("lazy-fill".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || {
                let outcome = watch(daemon, &pidfd, copies, &log_path);
                drop(pidfd);
                let _ = rustix::io::write(&signal, &1u64.to_ne_bytes());
                drop(signal);
                // Whoever waited may be gone.
                let _ = sender.send(outcome.map(|()| started.elapsed()));
            })
            .map_err(|e| Error::io("make a thread for", work_dir, e))?;
        Ok(Fill {
            ended,
            result,
            daemon,
        })
    }

    fn failed(&self, step: &'static str) -> Error {
        Error::LazyPages {
            step,
            log: log::read(&self.work_dir.join(LAZY_LOG)).or_first(self.process.complaint()),
        }
    }
}

/// Waits for the daemon's end, then lets go of the copies, at once when all memory is there: a
/// page that was never written has no image and gets its zeros from the kernel only then.
fn watch(
    daemon: i32,
    pidfd: &OwnedFd,
    copies: Vec<OwnedFd>,
    log_path: &Path,
) -> Result<(), FillFailure> {
    let far = Instant::now() + Duration::from_secs(u64::from(u32::MAX));
    let waited = launch::wait_exit(pidfd, far);
    let by_status = launch::reap(pidfd);
    if waited.is_ok() && by_status == Some(true) {
        return Ok(());
    }
    let text = fs::read(log_path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let progress = Progress::of(&text);
    // Somebody else took the exit status: then the log has to tell.
    if waited.is_ok() && by_status.is_none() && progress.complete() {
        return Ok(());
    }
    Err(FillFailure {
        daemon,
        done: progress.done,
        total: progress.total,
        log: log::parse(&text),
        guard: FillGuard { _copies: copies },
    })
}

/// How far a daemon came, by its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    total: usize,
    done: usize,
}

impl Progress {
    fn of(log: &str) -> Self {
        let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        Self {
            total: count("Received PID: ") + count("FORK: child with ufd"),
            done: count("UFFD transferred pages: ("),
        }
    }

    fn complete(self) -> bool {
        self.total > 0 && self.done >= self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINISHED: &str = "\
(00.006174) uffd: Received PID: 1, uffd: 9
(00.006180) uffd: Received PID: 7, uffd: 10
(00.100000) uffd: 1-9: FORK: child with ufd=11
(00.300000) uffd: 1-9: UFFD transferred pages: (12345/12345)
(00.300001) uffd: 7-10: UFFD transferred pages: (3/4)
(00.300002) uffd: 8-11: UFFD transferred pages: (0/0)
";

    #[test]
    fn a_log_with_every_address_space_summed_up_is_complete() {
        assert!(Progress::of(FINISHED).complete());
    }

    #[test]
    fn a_log_that_stops_before_the_last_summary_is_not() {
        let cut = FINISHED.rsplit_once("(00.300002)").unwrap().0;
        let progress = Progress::of(cut);
        assert_eq!((progress.total, progress.done), (3, 2));
        assert!(!progress.complete());
    }

    #[test]
    fn an_empty_log_is_not_complete() {
        assert!(!Progress::of("").complete());
    }
}
