//! The quota of all images of a node, kept by its shims without anybody in between.
//!
//! What is in the directory of the checkpoints is counted, whoever has made it. What is still to be
//! written counts from the moment in which it is reserved: an empty file of that length,
//! `.reserved-NAME`, which its shim keeps locked for as long as it writes. One that nobody has locked
//! is of a shim that was killed. Counting and reserving is done by one shim at a time, which holds
//! `.lock` meanwhile; the kernel gives both locks back whatever becomes of the shim.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use podmotion_criu_driver::images;
use podmotion_model::{idle::Quota, value::Share};

use super::{
    room,
    shared::{SharedError, failed, open},
    trouble::Trouble,
};

/// Held while somebody counts.
pub(super) const LOCK: &str = ".lock";

/// Begins the name of what is still to be written.
const RESERVED: &str = ".reserved-";

/// Size of a block of `stat`, whatever the file system has.
const BLOCK: u64 = 512;

/// Room for an image that is being written. Goes with its owner.
#[derive(Debug)]
pub struct Reservation {
    // Locked. Of others' files with the same name this one can be told apart by nobody, so the
    // name goes before the lock does.
    file: File,
    path: PathBuf,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Err(cause) = fs::remove_file(&self.path)
            && cause.kind() != io::ErrorKind::NotFound
        {
            log::warn!("remove {}: {cause}", self.path.display());
        }
        // Not left to the end of the last copy of the descriptor, which a child may have.
        if let Err(cause) = self.file.unlock() {
            log::warn!("unlock {}: {cause}", self.path.display());
        }
    }
}

/// Reserves room for the image directory `images` of `bytes` at most, among all that are beside it.
/// Without a quota nothing is counted. Blocks while others count.
///
/// # Errors
/// [`Trouble::OverQuota`] where there is no room, or why that cannot be told.
pub fn reserve(images: &Path, bytes: u64, share: Share) -> Result<Option<Reservation>, Trouble> {
    if share.of(u64::MAX) == 0 {
        return Ok(None);
    }
    let (Some(directory), Some(name)) = (images.parent(), images.file_name()) else {
        return Ok(None);
    };
    let name = name.to_string_lossy();
    images::make(directory)?;
    let lock = open(&directory.join(LOCK))?;
    lock.lock().map_err(failed("lock", directory))?;
    let quota = Quota {
        used: used_beside(directory, &name)?,
        needed: bytes,
        share,
        limit: share.of(room::disk(directory)?.total),
    };
    if quota.is_exceeded() {
        return Err(Trouble::OverQuota(quota));
    }
    let path = directory.join(format!("{RESERVED}{name}"));
    let file = open(&path)?;
    let reserved = Reservation { file, path };
    let noted = reserved
        .file
        .lock()
        .and_then(|()| reserved.file.set_len(bytes));
    noted.map_err(failed("reserve", &reserved.path))?;
    Ok(Some(reserved))
}

/// Bytes of all images but `own`, written or still to be. Removes notes of the dead.
fn used_beside(directory: &Path, own: &str) -> Result<u64, SharedError> {
    let mut used: BTreeMap<String, u64> = BTreeMap::new();
    let list = failed("list", directory);
    for entry in fs::read_dir(directory).map_err(list)? {
        let entry = entry.map_err(failed("list", directory))?;
        let file_name = entry.file_name();
        let name = file_name.to_string_lossy();
        let (name, bytes) = match name.strip_prefix(RESERVED) {
            Some(reserved) => (reserved, still_reserved(&entry.path(), reserved == own)?),
            None => (&*name, size(&entry.path())?),
        };
        let most = used.entry(name.to_owned()).or_default();
        *most = bytes.max(*most);
    }
    used.remove(own);
    Ok(used.values().sum())
}

/// The length of a note that somebody has locked. Another is removed, and so is one's `own`, which is
/// to be made anew.
fn still_reserved(path: &Path, own: bool) -> Result<u64, SharedError> {
    let opened = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path);
    match opened {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(0),
        // A symbolic link: nobody's note, wherever it leads.
        Err(cause) if cause.raw_os_error() == Some(libc::ELOOP) => {}
        opened => {
            let file = opened.map_err(failed("open", path))?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) if !own => {
                    let about = file.metadata().map_err(failed("look at", path))?;
                    return Ok(about.len());
                }
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(cause)) => return Err(failed("lock", path)(cause)),
            }
        }
    }
    match fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(cause)),
        _ => Ok(0),
    }
}

/// Bytes that a file, or a directory with all that is in it, takes on the disk. What goes away
/// meanwhile takes none.
fn size(path: &Path) -> Result<u64, SharedError> {
    let gone = |cause: &io::Error| {
        matches!(
            cause.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
        )
    };
    let about = match path.symlink_metadata() {
        Err(cause) if gone(&cause) => return Ok(0),
        about => about.map_err(failed("look at", path))?,
    };
    let own = about.blocks() * BLOCK;
    if !about.is_dir() {
        return Ok(own);
    }
    let entries = match fs::read_dir(path) {
        Err(cause) if gone(&cause) => return Ok(own),
        entries => entries.map_err(failed("list", path))?,
    };
    let mut sum = own;
    for entry in entries {
        sum += size(&entry.map_err(failed("list", path))?.path())?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use podmotion_model::value::ByteSize;

    const MIB: u64 = 1 << 20;
    const QUOTA: Share = Share::Bytes(ByteSize(10 * MIB));

    fn over(result: Result<Option<Reservation>, Trouble>) -> Quota {
        match result {
            Err(Trouble::OverQuota(quota)) => quota,
            other => panic!("{other:?}"),
        }
    }

    fn kept(result: Result<Option<Reservation>, Trouble>) -> Reservation {
        result.unwrap().unwrap()
    }

    #[test]
    fn what_is_written_and_what_is_to_be_written_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let first = kept(reserve(&at("a"), 6 * MIB, QUOTA));
        let quota = over(reserve(&at("b"), 5 * MIB, QUOTA));
        assert_eq!((quota.used / MIB, quota.limit), (6, 10 * MIB));
        fs::create_dir(at("a")).unwrap();
        fs::write(at("a").join("pages.img"), vec![1; 6 << 20]).unwrap();
        assert_eq!(over(reserve(&at("b"), 5 * MIB, QUOTA)).used / MIB, 6);
        drop(first);
        assert_eq!(over(reserve(&at("b"), 5 * MIB, QUOTA)).used / MIB, 6);
        // Its own image is written over.
        drop(kept(reserve(&at("a"), 9 * MIB, QUOTA)));
        fs::remove_dir_all(at("a")).unwrap();
        drop(kept(reserve(&at("b"), 5 * MIB, QUOTA)));
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 1, "more than the lock is left");
    }

    #[test]
    fn a_reservation_of_a_dead_shim_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join(".reserved-dead");
        File::create(&note).unwrap().set_len(9 * MIB).unwrap();
        let _kept = kept(reserve(&dir.path().join("b"), 5 * MIB, QUOTA));
        assert!(!note.exists());
    }

    #[test]
    fn of_many_at_once_as_many_get_room_as_there_is_room_for() {
        let dir = tempfile::tempdir().unwrap();
        let results: Vec<_> = std::thread::scope(|scope| {
            let start = |number| {
                let images = dir.path().join(format!("c{number}"));
                scope.spawn(move || reserve(&images, 2 * MIB, QUOTA))
            };
            let started: Vec<_> = (0..20).map(start).collect();
            started.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let room = results.iter().filter(|one| one.is_ok()).count();
        // The lock takes no block of the disk.
        assert_eq!(room, 5, "{results:?}");
    }

    #[test]
    fn without_a_quota_nothing_is_counted_or_made() {
        let dir = tempfile::tempdir().unwrap();
        let none = Share::Bytes(ByteSize(0));
        let reserved = reserve(&dir.path().join("a"), u64::MAX, none).unwrap();
        assert!(reserved.is_none());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
