//! The root of the second version of control groups, wherever it is mounted.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use thiserror::Error;

/// The root of the control groups could not be opened.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// Which file systems there are cannot be read.
    #[error("cannot read {}", path.display())]
    Mounts {
        /// The table of mounts.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not mounted, and cannot be.
    #[error("the control groups' second version is not mounted and cannot be: {operation}")]
    Mount {
        /// What was tried.
        operation: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
    /// This process has a root of its own.
    #[error("the root of the control groups cannot be seen from this process's cgroup namespace")]
    Hidden,
}

/// Opens the root of the control groups: where this process or the node's first one sees it mounted,
/// and else by a mount of its own, which ends with the descriptor.
pub(super) fn open_root() -> Result<OwnedFd, CgroupError> {
    for process in ["self", "1"] {
        for point in mount_points(process)? {
            let path = Path::new("/proc").join(process).join("root").join(point);
            if let Ok(directory) = File::open(&path).map(OwnedFd::from)
                && is_root(&directory)
            {
                return Ok(directory);
            }
        }
    }
    let directory = mount()?;
    match is_root(&directory) {
        true => Ok(directory),
        false => Err(CgroupError::Hidden),
    }
}

/// Relative to the process's root.
fn mount_points(process: &str) -> Result<Vec<PathBuf>, CgroupError> {
    let path = Path::new("/proc").join(process).join("mountinfo");
    match fs::read_to_string(&path) {
        Ok(table) => Ok(table.lines().filter_map(mount_point).collect()),
        Err(source) => Err(CgroupError::Mounts { path, source }),
    }
}

fn mount_point(line: &str) -> Option<PathBuf> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let found = file_system.starts_with("cgroup2 ") && root == "/";
    found.then(|| point.trim_start_matches('/').into())
}

/// Only the root has no type. What a cgroup namespace has for its root has one.
fn is_root(directory: &OwnedFd) -> bool {
    let exists = |name| statat(directory, name, AtFlags::empty()).is_ok();
    exists("cgroup.procs") && !exists("cgroup.type")
}

/// Mounts them where nobody else sees it.
fn mount() -> Result<OwnedFd, CgroupError> {
    let failed = |operation| move |source| CgroupError::Mount { operation, source };
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen"))?;
    fsconfig_create(&context).map_err(failed("fsconfig"))?;
    let mount = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(failed("fsmount"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(&mount, ".", flags, Mode::empty()).map_err(failed("open"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_hierarchies_of_the_second_version_are_found() {
        let unified = "35 24 0:30 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw";
        assert_eq!(mount_point(unified), Some("sys/fs/cgroup/unified".into()));
        for other in [
            "35 24 0:30 /kubepods/pod1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
            "36 24 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
            "nothing",
        ] {
            assert_eq!(mount_point(other), None, "{other}");
        }
    }
}
