//! Sockets and work directories of shims that are gone.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::net::sockopt::socket_peercred;

use super::{Leftover, Plan};
use crate::shims;

/// Fails where this process sees other processes than the shims do: then nothing can be told of who lives.
///
/// # Errors
/// When it does, or the sockets cannot be listed.
pub fn ensure_same_view(folder: &Path) -> Result<()> {
    for socket in shims::sockets(folder)? {
        let Ok(stream) = UnixStream::connect(&socket) else {
            continue;
        };
        let peer =
            socket_peercred(&stream).with_context(|| format!("who serves {}", socket.display()))?;
        ensure!(
            Path::new("/proc")
                .join(peer.pid.as_raw_pid().to_string())
                .exists(),
            "the shim of {} is not among the processes that are seen here: run gc in the node's PID namespace",
            socket.display()
        );
    }
    Ok(())
}

/// Removes the sockets that nobody listens on. Those of shims that have answered are none.
///
/// # Errors
/// When they cannot be listed.
pub fn remove(folder: &Path, answered: &BTreeSet<PathBuf>, plan: Plan) -> Result<Vec<Leftover>> {
    let mut found = Vec::new();
    for socket in shims::sockets(folder)? {
        if answered.contains(&socket) {
            continue;
        }
        let Some(inode) = dead(&socket, plan.min_age) else {
            continue;
        };
        let leftover = Leftover::new("socket", socket.display().to_string());
        found.push(leftover.with(plan.remove(|| remove_socket(&socket, inode))));
    }
    Ok(found)
}

/// The inode of a socket that is old enough and that nobody listens on.
fn dead(socket: &Path, min_age: Duration) -> Option<u64> {
    let about = socket.symlink_metadata().ok()?;
    let old = about.file_type().is_socket() && is_old(socket, min_age);
    (old && !is_served(socket)).then(|| about.ino())
}

/// Whether that much time has passed since the last change. What cannot be told is young.
fn is_old(path: &Path, min_age: Duration) -> bool {
    let changed = path.symlink_metadata().and_then(|about| about.modified());
    changed.is_ok_and(|at| at.elapsed().is_ok_and(|age| age >= min_age))
}

/// Takes it aside first: should a shim have started for the same sandbox in this moment, it is another socket, and
/// goes back.
fn remove_socket(socket: &Path, inode: u64) -> Result<()> {
    let aside = socket.with_added_extension("gc");
    let renamed = |from: &Path, to: &Path| {
        renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)
            .with_context(|| format!("rename {} to {}", from.display(), to.display()))
    };
    renamed(socket, &aside)?;
    let about = aside
        .symlink_metadata()
        .with_context(|| format!("look at {}", aside.display()))?;
    if about.ino() != inode || is_served(&aside) {
        renamed(&aside, socket)?;
        bail!("a shim listens on it");
    }
    fs::remove_file(&aside).with_context(|| format!("remove {}", aside.display()))
}

/// Whether somebody listens. A shim that is being killed still seems to, for a moment: its connections end by
/// themselves, those of one that lives do not.
fn is_served(socket: &Path) -> bool {
    const DYING: Duration = Duration::from_secs(1);
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        // What cannot be told stays.
        Err(error) => return error.kind() != io::ErrorKind::ConnectionRefused,
    };
    let waits = stream.set_read_timeout(Some(DYING));
    let ended = |result: io::Result<usize>| match result {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    };
    waits.is_err() || !ended(stream.read(&mut [0]))
}

/// Removes the work directories of shims that are gone: `PID-NUMBER` beside the sockets' folder.
///
/// # Errors
/// When they cannot be listed.
pub fn remove_work(sockets: &Path, plan: Plan) -> Result<Vec<Leftover>> {
    let folder = sockets.parent().unwrap_or(sockets).join("work");
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("list {}", folder.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path: PathBuf = entry
            .with_context(|| format!("list {}", folder.display()))?
            .path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let pid = name
            .split_once('-')
            .and_then(|(pid, _)| pid.parse::<u32>().ok());
        let gone = is_old(&path, plan.min_age)
            && pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
        if gone {
            let leftover = Leftover::new("work directory", path.display().to_string());
            found.push(leftover.with(plan.remove(|| {
                fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))
            })));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const NOW: Plan = Plan {
        dry_run: false,
        min_age: Duration::ZERO,
    };

    #[test]
    fn only_old_sockets_that_nobody_listens_on_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let _lives = UnixListener::bind(path("lives.sock")).unwrap();
        drop(UnixListener::bind(path("dead.sock")).unwrap());
        fs::write(path("file.sock"), "").unwrap();
        let young = Plan {
            min_age: Duration::from_secs(3600),
            ..NOW
        };
        assert!(
            remove(dir.path(), &BTreeSet::new(), young)
                .unwrap()
                .is_empty()
        );
        let removed = remove(dir.path(), &BTreeSet::new(), NOW).unwrap();
        assert_eq!(removed.len(), 1, "{removed:?}");
        assert!(removed[0].removed && !path("dead.sock").exists());
        assert!(path("lives.sock").exists() && path("file.sock").exists());
    }

    #[test]
    fn a_socket_that_is_served_again_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod.sock");
        drop(UnixListener::bind(&path).unwrap());
        let inode = dead(&path, Duration::ZERO).unwrap();
        fs::remove_file(&path).unwrap();
        let _lives = UnixListener::bind(&path).unwrap();
        assert!(remove_socket(&path, inode).is_err());
        assert!(is_served(&path));
    }

    #[test]
    fn work_directories_go_with_their_process() {
        let dir = tempfile::tempdir().unwrap();
        let work = |name: &str| dir.path().join("work").join(name);
        let own = format!("{}-0", std::process::id());
        for name in [own.as_str(), "4194305-1", "notes"] {
            fs::create_dir_all(work(name)).unwrap();
        }
        let removed = remove_work(&dir.path().join("shims"), NOW).unwrap();
        assert_eq!(removed.len(), 1, "{removed:?}");
        assert!(work(&own).exists() && work("notes").exists() && !work("4194305-1").exists());
    }
}
