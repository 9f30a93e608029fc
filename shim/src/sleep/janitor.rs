//! Images that nobody can need any more: after a reboot, or when all shims of a node were killed.
//!
//! Each shim holds a shared lock on `.shims` in the directory of the checkpoints for as long as it
//! lives. Whoever gets it for itself alone knows that no shim lives that could need what is there: an
//! image is read by the shim that made it and by nobody else. The kernel gives the lock back, whatever
//! the shim ends of. A new shim tries that before it has containers; where another one lives it finds
//! out with one system call, and removes nothing. `podmotion gc` is for the rest: what single shims
//! have left that were killed, where containerd did not clear up after them.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
};

use podmotion_criu_driver::images;
use podmotion_model::chain::Chain;

use super::shared::{SharedError, failed, open};

/// Locked by all shims that live.
const LOCK: &str = ".shims";

/// Begins the name of what is being removed.
const GONE: &str = ".gone-";

/// Names that begin so are no container's.
const OURS: char = '.';

/// What a living shim may need stays there for as long as it has this.
#[derive(Debug)]
pub struct Claim {
    _lock: File,
}

/// Claims the directory of the checkpoints, before anything is put there. What nobody can need is put
/// aside at once and removed by a thread; what fails of that is logged. Blocks for as long as another shim puts things aside.
///
/// # Errors
/// When the directory cannot be made or locked. Then others may remove what is put there.
pub fn claim(directory: &Path) -> Result<Claim, SharedError> {
    images::make(directory)?;
    let path = directory.join(LOCK);
    let lock = open(&path)?;
    let gone = match lock.try_lock() {
        Ok(()) => put_aside(directory),
        Err(TryLockError::WouldBlock) => Ok(Vec::new()),
        Err(TryLockError::Error(cause)) => return Err(failed("lock", &path)(cause)),
    };
    lock.lock_shared().map_err(failed("lock", &path))?;
    let gone = gone.unwrap_or_else(|error| {
        log::warn!("nothing of earlier shims is removed: {}", Chain(&error));
        Vec::new()
    });
    if !gone.is_empty() {
        log::info!("no shim was left: {} image directories go", gone.len());
        thread::spawn(move || remove(&gone));
    }
    Ok(Claim { _lock: lock })
}

/// Takes everything that is a container's out of the way. Returns where it is now, and what others
/// have begun to remove.
fn put_aside(directory: &Path) -> Result<Vec<PathBuf>, SharedError> {
    let mut gone = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let path = entry.path();
        if !path.is_dir() || path.is_symlink() {
            continue;
        }
        if name.starts_with(GONE) {
            gone.push(path);
        } else if !name.starts_with(OURS) {
            let aside = directory.join(format!("{GONE}{}-{name}", std::process::id()));
            fs::rename(&path, &aside).map_err(failed("put aside", &path))?;
            gone.push(aside);
        }
    }
    Ok(gone)
}

fn remove(gone: &[PathBuf]) {
    for path in gone {
        if let Err(cause) = fs::remove_dir_all(path)
            && cause.kind() != io::ErrorKind::NotFound
        {
            log::warn!("remove {}: {cause}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().flatten();
        let mut names: Vec<_> = entries
            .map(|one| one.file_name().into_string().unwrap())
            .filter(|name| !name.starts_with(GONE))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn only_who_is_alone_removes_anything() {
        let dir = tempfile::tempdir().unwrap();
        let images = dir.path().join("checkpoints");
        let make = |name: &str| fs::create_dir_all(images.join(name)).unwrap();
        for name in ["a", "a.memory", ".self-test", ".gone-1-b"] {
            make(name);
        }
        let first = claim(&images).unwrap();
        assert_eq!(names(&images), [".self-test", LOCK]);
        make("c");
        let second = claim(&images).unwrap();
        assert_eq!(names(&images), [".self-test", LOCK, "c"]);
        drop(first);
        let third = claim(&images).unwrap();
        assert_eq!(names(&images), [".self-test", LOCK, "c"]);
        drop((second, third));
        let _last = claim(&images).unwrap();
        assert_eq!(names(&images), [".self-test", LOCK]);
    }
}
