//! What to dump, and whether to go on with it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::EventfdFlags;

/// What to dump, and where to.
#[derive(Debug, Clone)]
pub struct DumpRequest<'a> {
    /// The container's init process, its pid on the host.
    pub pid: i32,
    /// Existing, empty directory for the images, mode 0700.
    pub images_dir: &'a Path,
    /// Existing directory for the log. May be the images' directory.
    pub work_dir: &'a Path,
    /// Keep established TCP connections in the images; otherwise one makes CRIU refuse.
    pub tcp_established: bool,
    /// Deleted files that are still open are copied into the images up to this many bytes each.
    pub ghost_limit: u32,
    /// Memory that the processes miss and CRIU does not see: it is added to the images.
    pub absent: Option<&'a dyn Absent>,
    /// Time to freeze the cgroup.
    pub freeze_timeout: Duration,
    /// Time for CRIU. When it is over the dump is aborted, as [`DumpControl::abort`] does.
    pub timeout: Duration,
}

impl<'a> DumpRequest<'a> {
    /// A request with the defaults: TCP connections kept, ghosts up to 64 MiB, ten seconds to
    /// freeze, two minutes to dump.
    pub fn new(pid: i32, images_dir: &'a Path, work_dir: &'a Path) -> Self {
        Self {
            pid,
            images_dir,
            work_dir,
            tcp_established: true,
            ghost_limit: 64 << 20,
            absent: None,
            freeze_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(120),
        }
    }
}

/// Memory of processes that is not in them: pages that are missing under a userfaultfd, and whose
/// content somebody has elsewhere.
pub trait Absent: fmt::Debug {
    /// Addresses of the pages that process `pid` missed before the dump began, in order and apart.
    /// Those that it has got since count too.
    fn ranges(&self, pid: i32) -> Vec<Range<u64>>;

    /// Reads the content of such pages from `address` on.
    ///
    /// # Errors
    /// When it is not there, or not what it was.
    fn read(&self, pid: i32, address: u64, into: &mut [u8]) -> Result<(), Veto>;
}

/// Why a dump must not be committed.
pub type Veto = Box<dyn std::error::Error + Send + Sync>;

/// Gives a dump up. Clones belong to the same dump and can be used from any thread.
#[derive(Debug, Clone)]
pub struct DumpControl {
    pub(super) abort: Arc<OwnedFd>,
}

impl DumpControl {
    /// For one dump.
    ///
    /// # Errors
    /// When the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            abort: Arc::new(rustix::event::eventfd(
                0,
                EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
            )?),
        })
    }

    /// Gives the dump up as soon as CRIU can put everything back, within milliseconds also while
    /// it writes memory. Has no effect after the commit.
    pub fn abort(&self) {
        // Only a full counter makes this fail, and then it is readable already.
        let _ = rustix::io::write(&*self.abort, &1u64.to_ne_bytes());
    }

    /// Whether [`abort`](Self::abort) was called.
    pub fn aborted(&self) -> bool {
        self.aborted_within(Duration::ZERO)
    }

    /// The same, after waiting for that so long at most.
    pub fn aborted_within(&self, time: Duration) -> bool {
        let mut fds = [rustix::event::PollFd::new(
            &*self.abort,
            rustix::event::PollFlags::IN,
        )];
        let time = rustix::event::Timespec::try_from(time).unwrap_or_default();
        rustix::event::poll(&mut fds, Some(&time)).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for DumpControl {
    /// Readable from [`abort`](DumpControl::abort) on.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.abort.as_fd()
    }
}
