//! Files that are written or removed in one step: whoever looks sees the old one or the new one.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// Ends the name of a file until it takes its place. No pattern such as `*.toml` fits.
const NEW: &str = ".podmotion-new";

/// A file or directory could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}: {source}", path.display())]
pub struct FileError {
    operation: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Says what was tried, and on what.
pub fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError {
        operation,
        path,
        source,
    }
}

/// The file's text; `None` if it is not there.
///
/// # Errors
/// When it cannot be read, or is not UTF-8.
pub fn read(path: &Path) -> Result<Option<String>, FileError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Replaces the file, or makes it with `mode`. One that was there keeps its owner and mode.
///
/// # Errors
/// When the file system refuses. The old file is there then.
pub fn write(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    let staging = staging(path);
    // Another run was killed before it was renamed.
    remove(&staging)?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&staging)
        .map_err(failed("create", &staging))?;
    let (mode, owner) = match fs::metadata(path) {
        Ok(old) => (old.permissions().mode(), Some((old.uid(), old.gid()))),
        Err(_) => (mode, None),
    };
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| match owner {
            Some((user, group)) => fchown(&file, Some(user), Some(group)),
            None => Ok(()),
        })
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode & 0o7777)))
        .and_then(|()| file.sync_all());
    written.map_err(failed("write", &staging))?;
    fs::rename(&staging, path).map_err(failed("replace", path))?;
    sync_parent(path)
}

/// Where a file is before it takes its place.
pub fn staging(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(NEW);
    path.with_file_name(name)
}

/// Removes the file or link. Whether it was there.
///
/// # Errors
/// When the file system refuses.
pub fn remove(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// Removes the directory with all that is in it. Whether it was there.
///
/// # Errors
/// When the file system refuses.
pub fn remove_tree(path: &Path) -> Result<bool, FileError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// Removes the directory if nothing is in it and nothing is mounted there. Whether it was removed.
///
/// # Errors
/// When the file system refuses.
pub fn remove_empty(path: &Path) -> Result<bool, FileError> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound, ResourceBusy};
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), NotFound | DirectoryNotEmpty | ResourceBusy) => {
            Ok(false)
        }
        Err(error) => Err(failed("remove", path)(error)),
    }
}

/// Makes the directory and its parents, or keeps the one that is there as it is.
///
/// # Errors
/// When the file system refuses.
pub fn make_directory(path: &Path, mode: u32) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_directory(parent, 0o755)?;
    }
    DirBuilder::new()
        .mode(mode)
        .create(path)
        .map_err(failed("create", path))?;
    // Whatever the umask is.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("open up", path))
}

/// Has `link` lead to `target`, in one step.
///
/// # Errors
/// When the file system refuses, or something is there that is no link.
pub fn point(link: &Path, target: &Path) -> Result<(), FileError> {
    let staging = staging(link);
    remove(&staging)?;
    std::os::unix::fs::symlink(target, &staging).map_err(failed("create", &staging))?;
    fs::rename(&staging, link).map_err(failed("replace", link))?;
    sync_parent(link)
}

/// What was changed in the directory of `path` is on the disk.
fn sync_parent(path: &Path) -> Result<(), FileError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync", parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_replaced_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        write(&path, "one", 0o640).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(staging(&path), "half of it").unwrap();
        write(&path, "two", 0o640).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(!staging(&path).exists());
        assert!(remove(&path).unwrap() && !remove(&path).unwrap());
        assert_eq!(read(&path).unwrap(), None);
    }

    #[test]
    fn an_error_names_the_operation_and_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file/below");
        fs::write(dir.path().join("file"), "").unwrap();
        let error = write(&path, "", 0o644).unwrap_err().to_string();
        assert!(
            error.starts_with("remove ") && error.contains("file/."),
            "{error}"
        );
    }

    #[test]
    fn a_link_is_turned_in_one_step() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("current");
        for target in ["versions/1", "versions/2"] {
            point(&link, Path::new(target)).unwrap();
            assert_eq!(fs::read_link(&link).unwrap(), Path::new(target));
        }
    }
}
