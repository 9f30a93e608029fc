//! What CRIU has to know about a container, for a dump and for a restore alike.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::thread::LinkNameSpaceType;

use crate::tmpfs::Tmpfs;

/// A container as CRIU sees it from the outside.
///
/// The same value serves a dump and the restore after it. All paths are the host's, except for
/// [`ExternalMount::inside`].
#[derive(Debug)]
pub struct Subject {
    /// The bundle's root file system. Must be mounted where the container's own root came from.
    pub rootfs: PathBuf,
    /// Mounts whose content stays outside of the checkpoint, see
    /// [`mounts::external`](crate::mounts::external).
    pub mounts: Vec<ExternalMount>,
    /// Namespaces that the container shares with others (its pod): CRIU enters them before it
    /// starts, so they are neither dumped nor made anew.
    pub join: Vec<(Namespace, OwnedFd)>,
    /// Directories of the container's cgroups, one in each hierarchy. CRIU is put into them before
    /// a restore, so that the processes start there.
    pub cgroups: Vec<PathBuf>,
    /// The cgroup directory that has `freezer.state` (v1) or `cgroup.freeze` (v2). The container's
    /// init process must be in it or below it.
    pub freezer: Option<PathBuf>,
    /// The container's ends of its stdio pipes.
    pub stdio: Vec<InheritedPipe>,
}

/// A mount that CRIU leaves alone at a dump and binds again at a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalMount {
    /// Mount point as the container sees it, absolute.
    pub inside: PathBuf,
    /// What is there.
    pub source: Source,
    /// The mount's own options as `/proc/<pid>/mountinfo` lists them: `ro,nosuid,relatime`.
    pub options: String,
}

/// Where an external mount comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// This file or directory of the host is bound there. No symbolic link: CRIU would bind the link
    /// itself.
    Host(PathBuf),
    /// It is made anew at each restore.
    Tmpfs(Tmpfs),
}

/// Kinds of namespace CRIU can be started in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// Network devices, addresses, sockets.
    Network,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// View of the cgroup hierarchy.
    Cgroup,
}

impl Namespace {
    /// Name of the namespace's link in `/proc/<pid>/ns`.
    pub fn proc_name(self) -> &'static str {
        match self {
            Self::Network => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
        }
    }

    pub(crate) fn link_type(self) -> LinkNameSpaceType {
        match self {
            Self::Network => LinkNameSpaceType::Network,
            Self::Ipc => LinkNameSpaceType::InterProcessCommunication,
            Self::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            Self::Cgroup => LinkNameSpaceType::ControlGroup,
        }
    }
}

/// One end of a pipe that outlives the container's processes.
///
/// At a restore CRIU gives this descriptor to every process that had the pipe, and leaves the
/// bytes inside the pipe as they are.
#[derive(Debug)]
pub struct InheritedPipe {
    /// CRIU's name of the pipe, `pipe:[<inode>]`.
    pub id: String,
    /// The end that the container holds: the write end for stdout and stderr, the read end for
    /// stdin.
    pub fd: OwnedFd,
}

impl InheritedPipe {
    /// Names the pipe by its inode.
    ///
    /// # Errors
    /// When the descriptor cannot be looked at.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let inode = rustix::fs::fstat(fd.as_fd())?.st_ino;
        Ok(Self {
            id: format!("pipe:[{inode}]"),
            fd,
        })
    }
}
