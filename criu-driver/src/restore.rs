//! Restore: from images to running processes.
//!
//! The container's init becomes a child of the calling process, not of CRIU.

mod undo;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rust_criu::rust_criu_protobuf::rpc::{
    Criu_cg_mode, Criu_network_lock_method, Criu_opts, Criu_req, Criu_req_type, Inherit_fd,
};

use crate::criu::{Criu, Directory, refused};
use crate::error::Error;
use crate::launch::{self, Process, RestoreMounts};
use crate::lazy::{Daemon, Fill};
use crate::log::{self, LogErrors};
use crate::rpc::{self, Connection, Event};
use crate::stats::{self, RestoreStats};
use crate::subject::Subject;

pub use undo::discard;

/// Name of CRIU's log in the work directory.
pub const RESTORE_LOG: &str = "restore.log";

/// What to restore.
#[derive(Debug, Clone)]
pub struct RestoreRequest<'a> {
    /// The images of a dump.
    pub images_dir: &'a Path,
    /// Existing directory for logs and the lazy-pages socket. One restore at a time uses it. Its
    /// path must leave room for a socket's name: at most 80 bytes. Not below `/tmp`: otherwise a CRIU
    /// that is killed leaves an empty directory there.
    pub work_dir: &'a Path,
    /// Let the processes run before their memory is there, see [`lazy`](crate::lazy).
    pub lazy: bool,
    /// Bring TCP connections back; otherwise images with one make CRIU refuse.
    pub tcp_established: bool,
    /// Restore TCP connections as closed instead.
    pub tcp_close: bool,
    /// Time for CRIU. When it is over everything half restored is killed.
    pub timeout: Duration,
    /// A process in the container's cgroups that is none of the container's: it stays there whatever becomes
    /// of the restore.
    pub spare: Option<i32>,
}

impl<'a> RestoreRequest<'a> {
    /// A request with the defaults: all memory at once, TCP connections kept, two minutes.
    pub fn new(images_dir: &'a Path, work_dir: &'a Path) -> Self {
        Self {
            images_dir,
            work_dir,
            lazy: false,
            tcp_established: true,
            tcp_close: false,
            timeout: Duration::from_secs(120),
            spare: None,
        }
    }
}

/// A container that runs again.
#[derive(Debug)]
pub struct Restored {
    /// Its init process, on the host; a child of the calling process.
    pub pid: i32,
    /// A descriptor of that process, taken before it ran.
    pub pidfd: OwnedFd,
    /// The master side of the container's terminal, where it had one.
    pub terminal: Option<OwnedFd>,
    /// Times.
    pub report: RestoreReport,
    /// The fill under way after a lazy restore.
    pub fill: Option<Fill>,
}

/// Times of a restore.
#[derive(Debug, Clone)]
pub struct RestoreReport {
    /// From the call until the processes ran.
    pub total: Duration,
    /// CRIU's own measurements.
    pub stats: Option<RestoreStats>,
}

/// A restore that did not happen. No process of it is left; the images are as they were.
#[derive(Debug, thiserror::Error)]
#[error("restore from {}", images_dir.display())]
pub struct RestoreFailure {
    /// The images.
    pub images_dir: PathBuf,
    /// Whether it was to be lazy.
    pub lazy: bool,
    /// Why.
    #[source]
    pub cause: Error,
}

impl RestoreFailure {
    /// The line of CRIU's log that names the cause, where there is one.
    pub fn criu_line(&self) -> Option<&str> {
        self.cause.criu_line()
    }
}

impl Criu {
    /// Restores a container: its processes run when this returns.
    ///
    /// The container's cgroups must exist, hold no process but the one to spare, and be thawed. The images should have
    /// been verified (see [`images`](crate::images)).
    ///
    /// # Errors
    /// When CRIU or its lazy-pages daemon refuse, die or take too long. Processes that were made
    /// until then are killed.
    pub fn restore(
        &self,
        subject: &Subject,
        request: &RestoreRequest<'_>,
    ) -> Result<Restored, RestoreFailure> {
        let mut restore = Restore {
            criu: self,
            subject,
            request,
            daemon: None,
            init: None,
            terminal: None,
        };
        let started = Instant::now();
        restore.run(started).map_err(|cause| {
            restore.clean_up();
            RestoreFailure {
                images_dir: request.images_dir.to_owned(),
                lazy: request.lazy,
                cause,
            }
        })
    }
}

/// One restore under way.
struct Restore<'a> {
    criu: &'a Criu,
    subject: &'a Subject,
    request: &'a RestoreRequest<'a>,
    daemon: Option<Daemon>,
    init: Option<(i32, OwnedFd)>,
    terminal: Option<OwnedFd>,
}

/// A directory that CRIU has mounts on. Removed when the restore is over.
struct MountPoint(PathBuf);

impl MountPoint {
    fn make(path: PathBuf) -> Result<Self, Error> {
        match fs::create_dir(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                Err(Error::io("make directory", path, e))
            }
            _ => Ok(Self(path)),
        }
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        // Empty: the mounts on it are in CRIU's own mount namespace.
        let _ = fs::remove_dir(&self.0);
    }
}

impl Restore<'_> {
    fn run(&mut self, started: Instant) -> Result<Restored, Error> {
        let deadline = started + self.request.timeout;
        let images = Directory::open(self.request.images_dir)?;
        let work = Directory::open(self.request.work_dir)?;
        let root = MountPoint::make(self.request.work_dir.join("root"))?;
        let stage = MountPoint::make(self.request.work_dir.join("mounts"))?;
        let mounts = RestoreMounts {
            rootfs: &self.subject.rootfs,
            root: &root.0,
            external: &self.subject.mounts,
            stage: &stage.0,
        };
        if self.request.lazy {
            let (images, work) = (self.request.images_dir, self.request.work_dir);
            self.daemon = Some(Daemon::start(self.criu, images, work)?);
        }
        let (connection, process) =
            self.criu
                .worker(self.pipes()?, &self.subject.join, Some(mounts), None)?;
        for cgroup in &self.subject.cgroups {
            let file = cgroup.join("cgroup.procs");
            fs::write(&file, process.pid().to_string()).map_err(|e| {
                match e.raw_os_error() {
                    // It has ended already, and says why itself.
                    Some(libc::ESRCH) => Error::Exited {
                        log: self.log(&process),
                    },
                    _ => Error::io("put CRIU into", file, e),
                }
            })?;
        }
        if let Some(daemon) = &self.daemon {
            daemon.wait_ready(deadline)?;
        }
        let message = self.message(&images, &work, &mounts);
        self.guarded(&connection, &process, &message, deadline)?;
        let total = started.elapsed();
        let fill = self.daemon.take().map(Daemon::into_fill).transpose()?;
        drop(connection);
        drop(process);
        let (pid, pidfd) = self.init.take().ok_or(Error::UnexpectedAnswer {
            got: Criu_req_type::RESTORE as i32,
        })?;
        let stats = stats::read_restore(self.request.work_dir).ok();
        Ok(Restored {
            pid,
            pidfd,
            terminal: self.terminal.take(),
            report: RestoreReport { total, stats },
            fill,
        })
    }

    fn converse(
        &mut self,
        connection: &Connection,
        process: &Process,
        deadline: Instant,
        ending: BorrowedFd<'_>,
    ) -> Result<(), Error> {
        loop {
            match connection.wait(process, deadline, Some(ending))? {
                Event::Notify {
                    script,
                    pid,
                    descriptor,
                } => {
                    if let Some(pid) = pid.filter(|_| self.init.is_none()) {
                        let pidfd = launch::pidfd(pid)
                            .map_err(|source| Error::NoProcess { pid, source })?;
                        self.init = Some((pid, pidfd));
                    }
                    if script == "orphan-pts-master" {
                        self.terminal = descriptor;
                    }
                    // All processes are there, stopped.
                    if script == "post-restore"
                        && let Some(daemon) = &mut self.daemon
                    {
                        daemon.take_copies(address_spaces(self.request.images_dir)?, deadline)?;
                    }
                    match connection.acknowledge(true) {
                        Err(e) if !rpc::is_gone(&e) => return Err(e),
                        _ => {}
                    }
                }
                Event::Answer(answer) if answer.success() => {
                    return match answer.type_() {
                        Criu_req_type::RESTORE => Ok(()),
                        other => Err(Error::UnexpectedAnswer { got: other as i32 }),
                    };
                }
                Event::Answer(answer) => return Err(refused(&answer, self.log(process))),
                Event::Closed | Event::Watched => {
                    return Err(Error::Exited {
                        log: self.log(process),
                    });
                }
                Event::Deadline => {
                    return Err(Error::TimedOut {
                        after: self.request.timeout,
                        log: self.log(process),
                    });
                }
            }
        }
    }

    /// Copies of the pipes to give to CRIU, as its descriptors 4, 5, ...
    fn pipes(&self) -> Result<Vec<OwnedFd>, Error> {
        self.subject
            .stdio
            .iter()
            .map(|pipe| {
                pipe.fd
                    .try_clone()
                    .map_err(|e| Error::io("copy a descriptor of", &pipe.id, e))
            })
            .collect()
    }

    fn message(
        &self,
        images: &Directory,
        work: &Directory,
        mounts: &RestoreMounts<'_>,
    ) -> Criu_req {
        let mut options = Criu_opts::new();
        options.set_images_dir_fd(images.number());
        options.set_work_dir_fd(work.number());
        options.set_log_file(RESTORE_LOG.to_owned());
        options.set_log_level(self.criu.log_level as i32);
        options.set_root(mounts.root.to_string_lossy().into_owned());
        options.set_rst_sibling(true);
        options.set_notify_scripts(true);
        options.set_manage_cgroups(true);
        options.set_manage_cgroups_mode(Criu_cg_mode::IGNORE);
        options.set_network_lock(Criu_network_lock_method::SKIP);
        options.set_tcp_established(self.request.tcp_established);
        options.set_tcp_close(self.request.tcp_close);
        options.set_file_locks(true);
        options.set_ext_unix_sk(true);
        options.set_evasive_devices(true);
        options.set_orphan_pts_master(true);
        options.set_ext_masters(true);
        options.set_ext_sharing(true);
        options.set_lazy_pages(self.request.lazy);
        options.external = mounts
            .external
            .iter()
            .enumerate()
            .map(|(index, mount)| {
                let source = launch::staged(mounts.stage, index);
                format!("mnt[{}]:{}", mount.inside.display(), source.display())
            })
            .collect();
        for (fd, pipe) in (4..).zip(&self.subject.stdio) {
            let mut inherit = Inherit_fd::new();
            inherit.set_key(pipe.id.clone());
            inherit.set_fd(fd);
            options.inherit_fd.push(inherit);
        }
        let mut request = rpc::request(Criu_req_type::RESTORE);
        request.opts = Some(options).into();
        request
    }

    fn log(&self, process: &Process) -> LogErrors {
        log::read(&self.request.work_dir.join(RESTORE_LOG)).or_first(process.complaint())
    }
}

/// How many address spaces the images hold. A zombie has none.
fn address_spaces(images_dir: &Path) -> Result<usize, Error> {
    let is_address_space = |name: &OsStr| {
        let name = name.to_string_lossy();
        name.starts_with("mm-") && name.ends_with(".img")
    };
    let mut count = 0;
    for entry in fs::read_dir(images_dir).map_err(|e| Error::io("list", images_dir, e))? {
        let entry = entry.map_err(|e| Error::io("list", images_dir, e))?;
        count += usize::from(is_address_space(&entry.file_name()));
    }
    Ok(count)
}
