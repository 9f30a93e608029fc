//! A checkpoint's directory: made private, described by a manifest, verified before use.
//!
//! Durability: CRIU's images are in the page cache when a dump ends, and stay readable there while
//! the machine is up. [`write_manifest`] comes last and is atomic, so a directory without one is a
//! dump that did not end. [`sync`] makes images and manifest survive a power failure; it takes as
//! long as the disk does, so it is not part of the way to sleep but done after it.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use podmotion_model::manifest::{FILE_NAME, ImageFile, Manifest, ManifestError, Sha256};

/// Files up to this size are described with their digest. Larger ones, and pages, by size alone.
const DIGEST_LIMIT: u64 = 4 << 20;

/// How names of images end.
const IMAGE: &str = ".img";

/// A checkpoint directory cannot be made or must not be used.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The system refused.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// There is no manifest: the dump did not end.
    #[error("{} was never completed", directory.display())]
    Incomplete {
        /// The directory.
        directory: PathBuf,
    },
    /// The manifest cannot be written or must not be trusted.
    #[error("manifest of {}", directory.display())]
    Manifest {
        /// The directory.
        directory: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// An image that the dump has not written.
    #[error("image {} is not in the manifest", path.display())]
    Foreign {
        /// The image.
        path: PathBuf,
    },
    /// An image is missing.
    #[error("image {} is missing", path.display())]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// An image has another size than described.
    #[error("image {} has {found} bytes, {expected} were written", path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// The size that was written.
        expected: u64,
        /// Its size.
        found: u64,
    },
    /// An image has other content than described.
    #[error("image {} does not match its checksum", path.display())]
    Digest {
        /// The image.
        path: PathBuf,
    },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImagesError {
    let path = path.to_owned();
    move |source| ImagesError::Io {
        operation,
        path,
        source,
    }
}

fn of_manifest(directory: &Path) -> impl FnOnce(ManifestError) -> ImagesError {
    let directory = directory.to_owned();
    move |source| ImagesError::Manifest { directory, source }
}

/// Makes an empty directory that only its owner can enter. Parents are made too, with the same
/// mode; what an earlier dump left there is removed.
///
/// # Errors
/// When the file system refuses.
pub fn create(directory: &Path) -> Result<(), ImagesError> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(failed("empty", directory)(e));
        }
        _ => {}
    }
    make(directory)
}

/// Makes a directory that only its owner can enter, and its parents, or keeps the one that is there
/// with what is in it.
///
/// # Errors
/// When the file system refuses.
pub fn make(directory: &Path) -> Result<(), ImagesError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed("make directory", directory))?;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
        .map_err(failed("close to others", directory))
}

/// The same for a directory that is one container's. A symbolic link in its place goes: what it leads to is
/// somebody else's.
///
/// # Errors
/// When the file system refuses.
pub fn make_own(directory: &Path) -> Result<(), ImagesError> {
    if directory.is_symlink() {
        fs::remove_file(directory).map_err(failed("remove", directory))?;
    }
    make(directory)
}

/// Waits until nobody writes images to `directory` any more, or at most `within`. A CRIU goes on with its dump when the
/// process that asked for it is killed; it has a lock on the directory for as long as it lives.
///
/// # Errors
/// When somebody still does, or the directory cannot be looked at. What is not there is not written to.
pub fn wait_written(directory: &Path, within: Duration) -> Result<(), ImagesError> {
    let lock = match File::open(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed("open", directory))?,
    };
    let (tell, told) = mpsc::channel();
    // A lock cannot be waited for with a limit. The thread of one that is not had ends with the writer.
    thread::spawn(move || {
        let locked = lock.lock();
        // Before anybody goes on: who writes next does not wait.
        drop(lock);
        tell.send(locked)
    });
    let locked = told.recv_timeout(within);
    locked
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(failed("wait for whoever writes to", directory))
}

/// Describes the images that a finished dump wrote, for the manifest. Logs, statistics and sockets
/// beside them are left out.
///
/// # Errors
/// When an image cannot be read.
pub fn describe(directory: &Path) -> Result<BTreeMap<String, ImageFile>, ImagesError> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let metadata = entry.metadata().map_err(failed("look at", &path))?;
        if !metadata.is_file() || !name.ends_with(IMAGE) {
            continue;
        }
        let size = metadata.size();
        let sha256 = if size <= DIGEST_LIMIT && !name.starts_with("pages-") {
            Some(digest(&path)?)
        } else {
            None
        };
        files.insert(name, ImageFile { size, sha256 });
    }
    Ok(files)
}

/// Puts the manifest in place, at once or not at all.
///
/// # Errors
/// When the manifest is not valid or cannot be written.
pub fn write_manifest(directory: &Path, manifest: &Manifest) -> Result<(), ImagesError> {
    let text = manifest.to_json().map_err(of_manifest(directory))?;
    let path = directory.join(FILE_NAME);
    let temporary = path.with_extension("tmp");
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(&text))
        .and_then(|()| fs::rename(&temporary, &path))
        .map_err(failed("write", &path))
}

/// Reads the manifest and checks that every image is there and no other, with its size, and the small ones
/// with their content.
///
/// # Errors
/// The first difference from the manifest, or that there is none.
pub fn verify(directory: &Path) -> Result<Manifest, ImagesError> {
    let path = directory.join(FILE_NAME);
    let text = match fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(ImagesError::Incomplete {
                directory: directory.to_owned(),
            });
        }
        read => read.map_err(failed("read", &path))?,
    };
    let manifest = Manifest::parse(&text).map_err(of_manifest(directory))?;
    for (name, file) in &manifest.files {
        let path = directory.join(name);
        let found = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(ImagesError::Missing { path });
            }
            metadata => metadata.map_err(failed("look at", &path))?.size(),
        };
        if found != file.size {
            return Err(ImagesError::Size {
                path,
                expected: file.size,
                found,
            });
        }
        if let Some(expected) = file.sha256
            && digest(&path)? != expected
        {
            return Err(ImagesError::Digest { path });
        }
    }
    // CRIU takes what it finds.
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let entry = entry.map_err(failed("list", directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(IMAGE) && !manifest.files.contains_key(&name) {
            return Err(ImagesError::Foreign { path: entry.path() });
        }
    }
    Ok(manifest)
}

/// Makes images and manifest survive a power failure.
///
/// # Errors
/// When the disk does not take them.
pub fn sync(directory: &Path) -> Result<(), ImagesError> {
    for entry in fs::read_dir(directory).map_err(failed("list", directory))? {
        let path = entry.map_err(failed("list", directory))?.path();
        if path.is_file() {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(failed("sync", &path))?;
        }
    }
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(failed("sync", directory))
}

/// Digest of a small file.
fn digest(path: &Path) -> Result<Sha256, ImagesError> {
    let content = fs::read(path).map_err(failed("read", path))?;
    Ok(Sha256::of(&content))
}

#[cfg(test)]
mod tests;
