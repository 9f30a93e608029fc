//! Files that a restore which was killed leaves in the container's file systems.
//!
//! A deleted file that a process has open is made again under the name `<path>.cr.<id>.ghost`,
//! opened, and deleted. Killed in between, CRIU leaves it, and the next restore from the same
//! images refuses to make it a second time.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use protobuf::CodedInputStream;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::subject::{Source, Subject};

/// Removes what is left of restores from these images.
pub(crate) fn remove(subject: &Subject, images_dir: &Path) -> io::Result<()> {
    let image = fs::read(images_dir.join("files.img"))?;
    for path in regular_files(&image) {
        let (root, below) = on_host(subject, &path);
        let (Some(directory), Some(name)) = (below.parent(), below.file_name()) else {
            continue;
        };
        let prefix = format!("{}.cr.", name.to_string_lossy());
        let Ok(opened) = open_below(root, directory) else {
            continue;
        };
        let directory = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&prefix) && name.ends_with(".ghost") {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

/// Opens a directory below `root`. A symbolic link on the way, which the container can have put there since,
/// does not lead out of it.
fn open_below(root: &Path, directory: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let directory = Path::new(".").join(directory);
    rustix::fs::openat2(
        root,
        &directory,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )
}

/// Where a path of the container is on the host: below what. What is on a tmpfs of the container is gone
/// with it and not found.
fn on_host<'a>(subject: &'a Subject, path: &'a Path) -> (&'a Path, &'a Path) {
    subject
        .mounts
        .iter()
        .filter_map(|mount| match &mount.source {
            Source::Host(source) => {
                Some((source.as_path(), path.strip_prefix(&mount.inside).ok()?))
            }
            Source::Tmpfs(_) => None,
        })
        .min_by_key(|(_, rest)| rest.as_os_str().len())
        .unwrap_or_else(|| {
            (
                subject.rootfs.as_path(),
                path.strip_prefix("/").unwrap_or(path),
            )
        })
}

/// Paths of the regular files in a `files.img`: two magics, then length-prefixed `file_entry`
/// messages of CRIU's `images/fdinfo.proto`, whose field 3 is a `reg_file_entry` with its name in
/// field 6. An image that ends early gives what was read until there.
fn regular_files(image: &[u8]) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let mut rest = image.get(8..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some(message) = after.get(..length) else {
            break;
        };
        let regular = bytes_field(message, 3);
        let name = regular.and_then(|regular| bytes_field(&regular, 6));
        if let Some(name) = name {
            let path = String::from_utf8_lossy(&name).into_owned();
            paths.push(Path::new("/").join(path));
        }
        rest = &after[length..];
    }
    paths
}

fn bytes_field(message: &[u8], number: u32) -> Option<Vec<u8>> {
    let mut stream = CodedInputStream::from_bytes(message);
    while let Some(tag) = stream.read_raw_tag_or_eof().ok()? {
        match tag & 7 {
            2 => {
                let bytes = stream.read_bytes().ok()?;
                if tag >> 3 == number {
                    return Some(bytes);
                }
            }
            0 => drop(stream.read_uint64().ok()?),
            1 => drop(stream.read_fixed64().ok()?),
            _ => drop(stream.read_fixed32().ok()?),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::subject::ExternalMount;

    fn image(names: &[&str]) -> Vec<u8> {
        let mut image = vec![0; 8];
        for name in names {
            let mut regular = vec![1 << 3, 7, 6 << 3 | 2, name.len() as u8];
            regular.extend(name.as_bytes());
            let mut entry = vec![1 << 3, 1, 2 << 3, 7, 3 << 3 | 2, regular.len() as u8];
            entry.extend(regular);
            image.extend((entry.len() as u32).to_le_bytes());
            image.extend(entry);
        }
        image
    }

    #[test]
    fn a_left_over_ghost_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (rootfs, volume) = (dir.path().join("rootfs"), dir.path().join("volume"));
        fs::create_dir_all(rootfs.join("tmp")).unwrap();
        fs::create_dir_all(&volume).unwrap();
        let host = dir.path().join("host");
        fs::create_dir_all(&host).unwrap();
        std::os::unix::fs::symlink(&host, rootfs.join("link")).unwrap();
        let subject = Subject {
            rootfs: rootfs.clone(),
            mounts: vec![ExternalMount {
                inside: "/data".into(),
                source: Source::Host(volume.clone()),
                options: "rw".into(),
            }],
            join: Vec::new(),
            cgroups: Vec::new(),
            freezer: None,
            stdio: Vec::new(),
        };
        let ghosts = [
            rootfs.join("tmp/log.cr.1.ghost"),
            volume.join("db.cr.a.ghost"),
        ];
        let others = [
            rootfs.join("tmp/other.cr.1.ghost"),
            rootfs.join("tmp/log"),
            host.join("x.cr.1.ghost"),
        ];
        for path in ghosts.iter().chain(&others) {
            fs::write(path, "").unwrap();
        }
        fs::write(
            dir.path().join("files.img"),
            image(&["tmp/log", "/data/db", "/link/x"]),
        )
        .unwrap();
        remove(&subject, dir.path()).unwrap();
        assert!(ghosts.iter().all(|path| !path.exists()));
        assert!(others.iter().all(|path| path.exists()));
    }

    #[test]
    fn an_image_cut_short_is_read_to_there() {
        let mut image = image(&["/a", "/b"]);
        image.truncate(image.len() - 1);
        assert_eq!(regular_files(&image), [PathBuf::from("/a")]);
    }

    proptest! {
        /// Whatever an image holds, what is read of it are absolute paths.
        #[test]
        fn any_image_gives_absolute_paths(
        noise in proptest::collection::vec(
            prop_oneof![4 => 0_u8..40, 1 => any::<u8>()], 0..80),
        ) {
            let length = (noise.len() as u32).to_le_bytes();
            for image in [[&[0; 8], &length[..], &noise].concat(), noise] {
                prop_assert!(regular_files(&image).iter().all(|path| path.is_absolute()));
            }
        }
    }
}
