//! A container's small `tmpfs`, made anew instead of archived.
//!
//! CRIU runs `tar` and `gzip` for each `tmpfs`, at the dump and at the restore, which costs more than
//! all the rest for a small container. Most hold nothing at all (masked directories, `/dev/shm`) or
//! what the runtime puts there (`/dev`). Such a one is noted as a list of its entries and given to
//! CRIU as an external mount that is made before CRIU starts.
//!
//! Left to CRIU is every `tmpfs` with a regular file, a socket or a pipe in it, with many entries,
//! with an inode that no name leads to (a deleted file still open), or with an option unknown here.

use std::ffi::CString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use rustix::mount::MountFlags;

use crate::mounts::MountInfo;

/// More entries than this are for `tar`.
const MOST: usize = 64;

/// Options of the file system that can be given to `mount` as they are listed.
const OPTIONS: [&str; 10] = [
    "size",
    "nr_blocks",
    "nr_inodes",
    "mode",
    "uid",
    "gid",
    "huge",
    "inode32",
    "inode64",
    "noswap",
];

/// What is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tmpfs {
    data: String,
    read_only: bool,
    /// The root first, each directory before what is in it.
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// Relative to the root; empty for it.
    path: PathBuf,
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Directory,
    Link(PathBuf),
    Character(u64),
    Block(u64),
}

impl Tmpfs {
    /// Looks at the `tmpfs` that the process `pid` has mounted as `mount`, one of `all` its mounts.
    /// `None` where it is to be left to CRIU. The process must be stopped, for the list to be true.
    pub(crate) fn look(pid: i32, mount: &MountInfo, all: &[MountInfo]) -> Option<Self> {
        if mount.kind != "tmpfs" || mount.root != Path::new("/") {
            return None;
        }
        let (read_only, data) = options(&mount.super_options)?;
        let root =
            PathBuf::from(format!("/proc/{pid}/root")).join(mount.point.strip_prefix("/").ok()?);
        let metadata = fs::symlink_metadata(&root).ok()?;
        // Another mount may cover it.
        if device(&metadata) != mount.device {
            return None;
        }
        let mut entries = vec![Entry::new(PathBuf::new(), Kind::Directory, &metadata)];
        let mut next = 0;
        while let Some(entry) = entries.get(next) {
            next += 1;
            if entry.kind == Kind::Directory && !covered(mount, all, &entry.path) {
                let path = entry.path.clone();
                list(&root, &path, mount, all, &mut entries)?;
            }
        }
        let is_same = |other: &&MountInfo| other.device == mount.device && other.root == mount.root;
        let shared = all.iter().filter(is_same).count() > 1;
        // One for each of its mounts will do only where none can ever show a difference: runc covers
        // all masked directories with one empty, read-only file system.
        if shared && !(read_only && entries.len() == 1) {
            return None;
        }
        let counts = rustix::fs::statfs(&root).ok()?;
        // All that there is has been seen: nothing deleted, nothing below another mount.
        let used = counts.f_files.checked_sub(counts.f_ffree)?;
        (used == entries.len() as u64).then_some(Self {
            data,
            read_only,
            entries,
        })
    }

    /// Mounts it on `target` and puts its entries in.
    pub(crate) fn make(&self, target: &Path) -> io::Result<()> {
        let data = CString::new(self.data.as_str())?;
        rustix::mount::mount("tmpfs", target, "tmpfs", MountFlags::empty(), Some(&*data))?;
        for entry in &self.entries {
            entry.make(target)?;
        }
        // What is put into a directory changes its time.
        for entry in self.entries.iter().rev() {
            entry.set_time(target)?;
        }
        if self.read_only {
            rustix::mount::mount_remount(target, MountFlags::RDONLY, c"")?;
        }
        Ok(())
    }
}

/// Adds what is in the directory `path` below `root`.
fn list(
    root: &Path,
    path: &Path,
    mount: &MountInfo,
    all: &[MountInfo],
    entries: &mut Vec<Entry>,
) -> Option<()> {
    for found in fs::read_dir(root.join(path)).ok()? {
        let found = found.ok()?;
        let path = path.join(found.file_name());
        let metadata = fs::symlink_metadata(found.path()).ok()?;
        let kind = metadata.file_type();
        let entry = if covered(mount, all, &path) {
            if !kind.is_dir() {
                return None;
            }
            // Nobody sees it as long as the mount on it is there; this is what runtimes make.
            Entry {
                mode: 0o755,
                owner: (0, 0),
                ..Entry::new(path, Kind::Directory, &metadata)
            }
        } else if kind.is_dir() {
            Entry::new(path, Kind::Directory, &metadata)
        } else if kind.is_symlink() {
            let target = fs::read_link(found.path()).ok()?;
            Entry::new(path, Kind::Link(target), &metadata)
        } else if kind.is_char_device() {
            Entry::new(path, Kind::Character(metadata.rdev()), &metadata)
        } else if kind.is_block_device() {
            Entry::new(path, Kind::Block(metadata.rdev()), &metadata)
        } else {
            return None;
        };
        if entries.len() == MOST {
            return None;
        }
        entries.push(entry);
    }
    Some(())
}

/// Whether another mount is on `path` of `mount`.
fn covered(mount: &MountInfo, all: &[MountInfo], path: &Path) -> bool {
    !path.as_os_str().is_empty() && {
        let point = mount.point.join(path);
        all.iter().any(|other| other.point == point)
    }
}

fn device(metadata: &Metadata) -> String {
    let device = metadata.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    format!("{major}:{minor}")
}

/// Whether it is read-only, and the rest for `mount`.
fn options(listed: &str) -> Option<(bool, String)> {
    let mut read_only = false;
    let mut data = Vec::new();
    for option in listed.split(',') {
        match option {
            "ro" => read_only = true,
            "rw" => {}
            _ if OPTIONS.contains(&option.split('=').next().unwrap_or_default()) => {
                data.push(option)
            }
            _ => return None,
        }
    }
    Some((read_only, data.join(",")))
}

impl Entry {
    fn new(path: PathBuf, kind: Kind, metadata: &Metadata) -> Self {
        Self {
            path,
            kind,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }

    fn make(&self, root: &Path) -> io::Result<()> {
        let path = root.join(&self.path);
        let node = |kind, number| {
            let mode = Mode::from_raw_mode(self.mode);
            rustix::fs::mknodat(CWD, &path, kind, mode, number)
        };
        match &self.kind {
            Kind::Directory if self.path.as_os_str().is_empty() => {}
            Kind::Directory => fs::create_dir(&path)?,
            Kind::Link(target) => std::os::unix::fs::symlink(target, &path)?,
            Kind::Character(number) => node(FileType::CharacterDevice, *number)?,
            Kind::Block(number) => node(FileType::BlockDevice, *number)?,
        }
        std::os::unix::fs::lchown(&path, Some(self.owner.0), Some(self.owner.1))?;
        if !matches!(self.kind, Kind::Link(_)) {
            fs::set_permissions(&path, fs::Permissions::from_mode(self.mode))?;
        }
        Ok(())
    }

    fn set_time(&self, root: &Path) -> io::Result<()> {
        let time = Timespec {
            tv_sec: self.modified.0,
            tv_nsec: self.modified.1,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        let path = root.join(&self.path);
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_over_without_the_access_mode() {
        let taken = options("ro,size=65536k,mode=755,inode64");
        assert_eq!(taken, Some((true, "size=65536k,mode=755,inode64".into())));
        assert_eq!(options("rw"), Some((false, String::new())));
    }

    #[test]
    fn an_option_that_mount_may_not_take_leaves_it_to_criu() {
        assert_eq!(options("rw,seclabel,size=1k"), None);
    }
}
