//! Starting CRIU: in the right namespaces, with the right descriptors, in mounts of its own.
//!
//! The process is started from a thread that lives only for it: that thread enters the namespaces
//! and makes the mounts, the process inherits them, and the caller's threads stay where they are.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use command_fds::{CommandFdExt, FdMapping};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::error::Error;
use crate::subject::{ExternalMount, Namespace, Source};
use crate::sys;

/// What to start.
pub(crate) struct Launch<'a> {
    pub binary: &'a Path,
    pub arguments: Vec<OsString>,
    /// Become descriptors 3, 4, ... of the process.
    pub descriptors: Vec<OwnedFd>,
    pub join: &'a [(Namespace, OwnedFd)],
    pub mounts: Mounts<'a>,
    pub directory: Option<&'a Path>,
}

/// Mounts that only the process sees.
#[derive(Default, Clone, Copy)]
pub(crate) struct Mounts<'a> {
    /// Cover `/run` with a tmpfs that shows the same entries, plus CRIU's cache file where there
    /// is content for it.
    pub run: Option<Option<&'a [u8]>>,
    /// What a restore builds the container's mounts from.
    pub restore: Option<RestoreMounts<'a>>,
}

/// Directories of a restore that have mounts on them only for CRIU.
#[derive(Clone, Copy)]
pub(crate) struct RestoreMounts<'a> {
    pub rootfs: &'a Path,
    /// CRIU wants its root to be a mount point whose parent nothing covers: `rootfs` is bound here.
    pub root: &'a Path,
    pub external: &'a [ExternalMount],
    /// Here [`staged`] has a mount for each external one.
    pub stage: &'a Path,
}

/// Where the external mount with this index is made ready for CRIU.
pub(crate) fn staged(stage: &Path, index: usize) -> PathBuf {
    stage.join(index.to_string())
}

impl Mounts<'_> {
    fn is_empty(&self) -> bool {
        self.run.is_none() && self.restore.is_none()
    }
}

/// A started process. Dropping it kills and reaps it.
pub(crate) struct Process {
    pid: i32,
    pidfd: OwnedFd,
    stderr: OwnedFd,
}

const CACHE_NAME: &str = "criu.kdat";

/// Held from a start of CRIU until there is a descriptor for its process.
static STARTS: Mutex<()> = Mutex::new(());

/// Has no CRIU be started until the result is dropped. Whoever takes the exit statuses of all children of this
/// process holds it meanwhile: the pid of a CRIU that ends at once would be nobody's, or another's, before a
/// descriptor for it can be had. A start takes about a millisecond of it.
pub fn hold_starts() -> MutexGuard<'static, ()> {
    STARTS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Launch<'_> {
    pub(crate) fn start(self) -> Result<Process, Error> {
        fs::metadata(self.binary).map_err(|source| Error::MissingBinary {
            path: self.binary.to_owned(),
            source,
        })?;
        let binary = self.binary.to_owned();
        let failed = |step: &'static str| {
            let path = binary.clone();
            move |source: io::Error| Error::Spawn { path, step, source }
        };
        let stderr = rustix::fs::memfd_create("criu-stderr", MemfdFlags::CLOEXEC)
            .map_err(|e| failed("make a file for its standard error")(e.into()))?;
        let copy = stderr.try_clone().map_err(failed("copy a descriptor"))?;
        let (pid, pidfd) = thread::scope(|scope| {
            let spawner = thread::Builder::new()
                .name("criu-spawn".to_owned())
                .spawn_scoped(scope, move || self.spawn(copy))
                .map_err(failed("make a thread"))?;
            spawner
                .join()
                .unwrap_or_else(|_| Err(("execute", io::ErrorKind::NotFound.into())))
                .map_err(|(step, source)| failed(step)(source))
        })?;
        Ok(Process { pid, pidfd, stderr })
    }

    /// Runs on the thread that is given up afterwards.
    fn spawn(self, stderr: OwnedFd) -> Result<(i32, OwnedFd), (&'static str, io::Error)> {
        if !self.mounts.is_empty() {
            make_mounts(self.mounts, self.binary).map_err(|e| ("prepare its mounts", e))?;
        }
        for (kind, fd) in self.join {
            rustix::thread::move_into_link_name_space(fd.as_fd(), Some(kind.link_type()))
                .map_err(|e| ("enter a namespace", e.into()))?;
        }
        let mut command = Command::new(self.binary);
        command
            .args(&self.arguments)
            .env_clear()
            // CRIU runs tar, ip and iptables by name.
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            // Its helpers stay in its group, see `Process::kill`.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(stderr));
        if let Some(directory) = self.directory {
            command.current_dir(directory);
        }
        sys::ignore_file_size_signal(&mut command);
        // A restore sets its own signal mask, and what it makes is the container's, with the modes that
        // it had.
        if self.mounts.restore.is_none() {
            // Images and logs.
            sys::close_files_to_others(&mut command);
            // It would be told of each stop of each task that it dumps, and look the other way
            // (`sigchld_handler` in `criu/parasite-syscall.c` is for tasks that die). Worse, who watches
            // CRIU's end would have to pass each of these signals on, and can miss the end then; see `Watch`.
            sys::block_child_signal(&mut command);
        }
        let mappings = (3..)
            .zip(self.descriptors)
            .map(|(child_fd, parent_fd)| FdMapping {
                parent_fd,
                child_fd,
            })
            .collect();
        command
            .fd_mappings(mappings)
            .map_err(|e| ("map descriptors", io::Error::other(e)))?;
        let _known = hold_starts();
        let child = command.spawn().map_err(|e| ("execute", e))?;
        let pid = i32::try_from(child.id()).map_err(|e| ("execute", io::Error::other(e)))?;
        let pidfd = pidfd(pid).map_err(|e| ("open a descriptor for its process", e))?;
        Ok((pid, pidfd))
    }
}

/// In a mount namespace of the calling thread's own.
fn make_mounts(mounts: Mounts<'_>, binary: &Path) -> io::Result<()> {
    sys::unshare_mounts()?;
    rustix::mount::mount_change(
        "/",
        // Not private: a container's mount that follows one of the host has to go on doing so.
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    if let Some(cache) = mounts.run {
        cover_run(cache)?;
    }
    if let Some(restore) = mounts.restore {
        rustix::mount::mount_bind_recursive(restore.rootfs, restore.root)?;
        stage(&restore)?;
        // CRIU builds the container's mounts in a directory in /tmp. One that is killed would
        // leave it there. All that it needs of the host's /tmp is in place by now, unless it is there
        // itself.
        let in_use = |path: &Path| path.starts_with("/tmp");
        if !in_use(restore.stage) && !in_use(binary) {
            rustix::mount::mount(
                "tmpfs",
                "/tmp",
                "tmpfs",
                MountFlags::NOSUID,
                Some(c"mode=1777"),
            )?;
        }
    }
    Ok(())
}

/// Makes a mount with the right options of each external source. CRIU applies a mount's options
/// only where they differ from those of another mount of the same file system, which is wrong for
/// external ones: of two read-only volumes on one disk, the second came back writable. A copy of
/// a mount that has them already keeps them.
fn stage(restore: &RestoreMounts<'_>) -> io::Result<()> {
    rustix::mount::mount(
        "tmpfs",
        restore.stage,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=700"),
    )?;
    for (index, mount) in restore.external.iter().enumerate() {
        let target = staged(restore.stage, index);
        match &mount.source {
            Source::Host(path) => {
                if fs::metadata(path)?.is_dir() {
                    fs::create_dir(&target)?;
                } else {
                    fs::File::create(&target)?;
                }
                rustix::mount::mount_bind(path, &target)?;
            }
            Source::Tmpfs(tmpfs) => {
                fs::create_dir(&target)?;
                tmpfs.make(&target)?;
            }
        }
        let flags = mount_flags(&mount.options);
        rustix::mount::mount_remount(&target, MountFlags::BIND | flags, c"")?;
    }
    Ok(())
}

fn mount_flags(options: &str) -> MountFlags {
    options
        .split(',')
        .map(|option| match option {
            "ro" => MountFlags::RDONLY,
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "noexec" => MountFlags::NOEXEC,
            "noatime" => MountFlags::NOATIME,
            "nodiratime" => MountFlags::NODIRATIME,
            "relatime" => MountFlags::RELATIME,
            _ => MountFlags::empty(),
        })
        .collect()
}

/// CRIU keeps what it found out about the kernel in `/run`, but only on a tmpfs, since a reboot
/// must lose it; finding out anew costs it 50 ms. Where `/run` is on a disk it gets a tmpfs.
fn cover_run(cache: Option<&[u8]>) -> io::Result<()> {
    let run = Path::new("/run");
    let below = rustix::fs::open(
        run,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let below = PathBuf::from(format!("/proc/self/fd/{}", below.as_raw_fd()));
    let entries = fs::read_dir(&below)?.collect::<io::Result<Vec<_>>>()?;
    rustix::mount::mount(
        "tmpfs",
        run,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=755"),
    )?;
    for entry in entries {
        let target = run.join(entry.file_name());
        let kind = entry.file_type()?;
        // Not CRIU's own: on a disk it leaves an unfinished cache, and makes none while that is there.
        if entry.file_name().to_string_lossy().starts_with(CACHE_NAME) {
            continue;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?;
            continue;
        } else if kind.is_dir() {
            fs::create_dir(&target)?;
        } else {
            fs::File::create(&target)?;
        }
        match rustix::mount::mount_bind_recursive(entry.path(), &target) {
            // Gone since it was listed.
            Err(rustix::io::Errno::NOENT) => {}
            other => other?,
        }
    }
    if let Some(cache) = cache {
        fs::write(run.join(CACHE_NAME), cache)?;
    }
    Ok(())
}

/// Whether CRIU can keep its cache where it wants to.
pub(crate) fn run_is_tmpfs() -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    rustix::fs::statfs("/run").is_ok_and(|s| u64::try_from(s.f_type) == Ok(TMPFS_MAGIC))
}

pub(crate) fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Waits until the process behind `pidfd` has ended. False when the deadline came first.
pub(crate) fn wait_exit(pidfd: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Takes the exit status of an ended child, unless somebody else has already.
/// `None` when it was taken, or is no child of ours.
pub(crate) fn reap(pidfd: &OwnedFd) -> Option<bool> {
    rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .ok()
        .flatten()
        .map(|status| status.exit_status() == Some(0))
}

impl Process {
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Kills it and its helpers. Also when the process itself has ended: helpers can be left.
    pub(crate) fn kill(&self) {
        // Both fail when nobody is left; the second also before Linux 6.9, where helpers are left
        // to notice by themselves that their socket is closed.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        let _ = sys::kill_group(&self.pidfd);
    }

    /// Has the kernel end others first when memory is short: a CRIU that dies in the middle of a dump
    /// can take the container with it. Not for a restore, whose tasks would inherit it.
    pub(crate) fn spare_when_memory_is_short(&self) {
        if let Err(e) = fs::write(format!("/proc/{}/oom_score_adj", self.pid), "-1000") {
            log::debug!("spare CRIU when memory is short: {e}");
        }
    }

    /// What it has written to standard error, where a start that fails says why.
    pub(crate) fn complaint(&self) -> Option<String> {
        let mut bytes = vec![0; 4096];
        let length = rustix::io::pread(&self.stderr, &mut bytes, 0).ok()?;
        let text = String::from_utf8_lossy(&bytes[..length]);
        text.lines()
            .find(|line| line.contains("rror"))
            .or_else(|| text.lines().next_back())
            .map(str::to_owned)
    }

    /// It no longer has to be ended with this value.
    pub(crate) fn leave(mut self) {
        self.pid = 0;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.pid != 0 {
            self.kill();
            reap(&self.pidfd);
        }
    }
}
