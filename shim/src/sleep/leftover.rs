//! What a shim that was killed leaves of a container that may sleep, and its removal.
//!
//! While it lives, the shim takes back itself what it has made. For the other case it notes in the
//! container's bundle what nobody else knows; containerd then runs this program with `delete`, which
//! reads the note. Descriptors need none: the tap, the links of the gate's programs and the
//! placeholder go with the shim.

use std::{
    fs,
    io::{self, Read},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use podmotion_criu_driver::{
    Freezer,
    freezer::FreezerError,
    images::{self, ImagesError},
};
use podmotion_model::config::NodeConfig;
use serde::{Deserialize, Serialize};

use super::{memory_images, node::work_folder};
use crate::gate::{self, GateError};

/// Name of the note in the bundle.
const FILE: &str = "podmotion.json";
/// And as long as it is not whole.
const NEW: &str = "podmotion.json.new";

/// Time for killed processes to go, and for a CRIU to notice.
const END: Duration = Duration::from_secs(5);

/// Why something was not noted, or is still there.
#[derive(Debug, thiserror::Error)]
pub enum LeftoverError {
    /// A file or directory.
    #[error("{operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The note is not one.
    #[error("parse {path}: {source}")]
    Parse {
        /// The note.
        path: PathBuf,
        /// The parser's answer.
        #[source]
        source: serde_json::Error,
    },
    /// The container's processes cannot be ended.
    #[error(transparent)]
    Freezer(#[from] FreezerError),
    /// CRIU still writes images.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// Entries of the gate.
    #[error(transparent)]
    Gate(#[from] GateError),
}

/// The note.
#[derive(Debug, Serialize, Deserialize)]
pub struct Note {
    /// Pid of the shim.
    pub shim: u32,
    /// Cookie of the container's network namespace.
    pub netns: u64,
    /// The container's cgroup with the freezer.
    pub freezer: PathBuf,
}

impl Note {
    /// Leaves the note in `bundle`, whole or not at all: the shim can be killed meanwhile.
    pub fn write(&self, bundle: &Path) -> Result<(), LeftoverError> {
        let path = bundle.join(FILE);
        let text = serde_json::to_vec(self).map_err(|source| LeftoverError::Parse {
            path: path.clone(),
            source,
        })?;
        let new = bundle.join(NEW);
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(failed("write", &path))
    }

    /// The note in `bundle`, if there is one.
    fn read(bundle: &Path) -> Result<Option<Self>, LeftoverError> {
        let path = bundle.join(FILE);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| LeftoverError::Parse { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed("read", &path)(source)),
        }
    }
}

/// Removes what the killed shim of `group` has left of the container `id`, all but what the runtime
/// knows. Must come before the runtime's own deletion: it does not know the processes of a wake that
/// was under way.
pub fn remove(config: &NodeConfig, bundle: &Path, id: &str, group: &str) -> Vec<LeftoverError> {
    let mut failures = Vec::new();
    match Note::read(bundle) {
        Ok(Some(note)) => {
            failures.extend(end_processes(&note.freezer).err());
            let purged = gate::purge(&config.gate.pins, note.netns);
            failures.extend(purged.err().map(LeftoverError::from));
            let work = work_folder(config);
            failures.extend(remove_work(&work, note.shim).err());
        }
        Ok(None) => {}
        Err(error) => failures.push(error),
    }
    let images = config.checkpoint.directory.join(id);
    // Without processes a dump comes to its end, and CRIU writes to the last.
    failures.extend(images::wait_written(&images, END).err().map(Into::into));
    for folder in [memory_images(&images), images] {
        failures.extend(gone("remove", &folder, fs::remove_dir_all(&folder)).err());
    }
    let socket = config.shim.sockets.join(format!("{group}.sock"));
    if !is_served(&socket) {
        failures.extend(gone("remove", &socket, fs::remove_file(&socket)).err());
    }
    failures
}

/// Whether a living process listens on a socket. The kernel takes a tap down before it closes the
/// sockets of the process that had it: for up to a tenth of a second a shim that was killed still seems
/// to listen. A connection that it can no longer accept ends with it.
pub fn is_served(socket: &Path) -> bool {
    const DYING: Duration = Duration::from_secs(1);
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return false;
    };
    let waits = stream.set_read_timeout(Some(DYING));
    // A server says nothing unasked.
    let nothing = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
    waits.is_ok() && stream.read(&mut [0]).is_err_and(|error| nothing(&error))
}

fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> LeftoverError + use<'a> {
    move |source| LeftoverError::File {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// What is not there need not be removed.
fn gone(operation: &'static str, path: &Path, result: io::Result<()>) -> Result<(), LeftoverError> {
    match result {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(failed(operation, path)(source))
        }
        _ => Ok(()),
    }
}

/// Kills all in the cgroup: a container that was being dumped, one that was being restored and the
/// CRIU that did it.
fn end_processes(freezer: &Path) -> Result<(), LeftoverError> {
    if !freezer.exists() {
        return Ok(());
    }
    Ok(Freezer::new(freezer)?.end_processes(END)?)
}

/// Removes the work directories of restores by the shim `pid`.
fn remove_work(folder: &Path, pid: u32) -> Result<(), LeftoverError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed("list", folder))?,
    };
    let prefix = format!("{pid}-");
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let path = entry.path();
            gone("remove", &path, fs::remove_dir_all(&path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::{fd::AsFd, unix::net::UnixListener},
        sync::mpsc,
        thread,
    };

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn config(dir: &Path) -> NodeConfig {
        let mut config = NodeConfig::default();
        config.checkpoint.directory = dir.join("images");
        config.shim.sockets = dir.join("run/shims");
        config.gate.pins = dir.join("pins");
        config
    }

    #[test]
    fn images_work_and_socket_of_a_killed_shim_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let make = |path: &str| fs::create_dir_all(dir.path().join(path)).unwrap();
        for path in [
            "images/a",
            "images/b",
            "run/work/7-0",
            "run/work/70-0",
            "run/shims",
        ] {
            make(path);
        }
        fs::write(dir.path().join("run/shims/pod.sock"), "").unwrap();
        fs::write(dir.path().join("run/shims/other.sock"), "").unwrap();
        let note = Note {
            shim: 7,
            netns: 1,
            freezer: dir.path().join("gone"),
        };
        note.write(dir.path()).unwrap();
        let failures = remove(&config, dir.path(), "a", "pod");
        // Here are no pinned maps.
        assert!(
            matches!(failures[..], [LeftoverError::Gate(_)]),
            "{failures:?}"
        );
        let left = |path: &str| dir.path().join(path).exists();
        assert!(!left("images/a") && !left("run/work/7-0") && !left("run/shims/pod.sock"));
        assert!(left("images/b") && left("run/work/70-0") && left("run/shims/other.sock"));
    }

    #[test]
    fn images_of_a_dump_that_goes_on_without_its_shim_are_removed_after_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let images = config.checkpoint.directory.join("a");
        fs::create_dir_all(&images).unwrap();
        let criu = File::open(&images).unwrap();
        criu.lock_shared().unwrap();
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let removing = scope.spawn(|| {
                tell.send(()).unwrap();
                remove(&config, dir.path(), "a", "pod")
            });
            told.recv().unwrap();
            for number in 0..1000 {
                fs::write(images.join(number.to_string()), "image").unwrap();
            }
            drop(criu);
            let failures = removing.join().unwrap();
            assert!(failures.is_empty(), "{failures:?}");
        });
        assert!(!images.exists());
    }

    #[test]
    fn a_socket_of_a_shim_that_is_dying_is_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(!is_served(&path));
        let listener = UnixListener::bind(&path).unwrap();
        let dying = thread::spawn(move || {
            // Connected to, and closed without having accepted.
            let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::NONE).unwrap();
        });
        assert!(!is_served(&path));
        dying.join().unwrap();
        let other = dir.path().join("other");
        let _listener = UnixListener::bind(&other).unwrap();
        assert!(is_served(&other));
    }

    #[test]
    fn a_container_that_never_could_sleep_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let failures = remove(&config(dir.path()), dir.path(), "a", "pod");
        assert!(failures.is_empty(), "{failures:?}");
    }
}
