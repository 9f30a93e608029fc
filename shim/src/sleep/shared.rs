//! Files in the directory of the checkpoints, by which the shims of a node see one another.

use std::{
    fs::File,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use podmotion_criu_driver::images::ImagesError;

/// What shims share cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
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
    /// There is no directory for images.
    #[error(transparent)]
    Images(#[from] ImagesError),
}

/// Says what was tried, and on what.
pub fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SharedError {
    let path = path.to_owned();
    move |source| SharedError::Io {
        operation,
        path,
        source,
    }
}

/// A file to lock, made if it is not there. A symbolic link is an error: the file that it leads to is not
/// the shims'.
pub fn open(path: &Path) -> Result<File, SharedError> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_in_place_of_a_lock_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, elsewhere) = (dir.path().join("lock"), dir.path().join("elsewhere"));
        std::os::unix::fs::symlink(&elsewhere, &lock).unwrap();
        assert!(open(&lock).unwrap_err().to_string().contains("lock"));
        assert!(!elsewhere.exists());
    }
}
