//! Names of files that appear in a folder, change, or go.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use tokio::io::unix::AsyncFd;

use crate::sys::{self, OwnInotify};

/// A socket's mode is set once somebody listens on it; a file is moved into place or closed when it is
/// complete.
const CHANGES: AddWatchFlags = AddWatchFlags::IN_ATTRIB
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_CLOSE_WRITE)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_DELETE);

/// The folder itself is gone.
const OVER: AddWatchFlags = AddWatchFlags::IN_DELETE_SELF.union(AddWatchFlags::IN_MOVE_SELF);

/// A folder cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The system refuses.
    #[error("{operation} {}: {source}", path.display())]
    System {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It is not there any more.
    #[error("{} was removed", .0.display())]
    Removed(PathBuf),
}

/// What has happened.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// To the file of this name.
    File(PathBuf),
    /// To whatever: some was missed.
    Any,
}

/// A watched folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    inotify: AsyncFd<OwnInotify>,
}

impl Folder {
    /// Watches a folder of ours, and makes it where it is missing: only what is there can be watched.
    ///
    /// # Errors
    /// When it cannot be made or watched.
    pub fn make(path: &Path) -> Result<Self, FolderError> {
        let mut make = DirBuilder::new();
        let made = make.recursive(true).mode(0o700).create(path);
        made.map_err(|source| FolderError::System {
            operation: "create",
            path: path.to_owned(),
            source,
        })?;
        Self::watch(path)
    }

    /// Watches a folder that is there.
    ///
    /// # Errors
    /// When it cannot be watched.
    pub fn watch(path: &Path) -> Result<Self, FolderError> {
        let failed = |operation| {
            move |source| FolderError::System {
                operation,
                path: path.to_owned(),
                source,
            }
        };
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|errno| failed("watch")(errno.into()))?;
        inotify
            .add_watch(path, CHANGES | OVER)
            .map_err(|errno| failed("watch")(errno.into()))?;
        let inotify = sys::readable(inotify).map_err(failed("watch"))?;
        Ok(Self {
            path: path.to_owned(),
            inotify,
        })
    }

    /// The files in it now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn files(&self) -> Result<Vec<PathBuf>, FolderError> {
        let failed = |source| FolderError::System {
            operation: "list",
            path: self.path.clone(),
            source,
        };
        let entries = std::fs::read_dir(&self.path).map_err(failed)?;
        entries
            .map(|entry| Ok(entry.map_err(failed)?.path()))
            .collect()
    }

    /// Waits for what happens next.
    ///
    /// # Errors
    /// When the folder cannot be watched any more.
    pub async fn changes(&self) -> Result<Vec<Change>, FolderError> {
        let failed = |source| FolderError::System {
            operation: "watch",
            path: self.path.clone(),
            source,
        };
        loop {
            let mut ready = self.inotify.readable().await.map_err(failed)?;
            match ready.get_inner().read_events() {
                Ok(events) => return events.into_iter().map(|one| self.change(one)).collect(),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }

    fn change(&self, event: InotifyEvent) -> Result<Change, FolderError> {
        if event.mask.intersects(OVER | AddWatchFlags::IN_IGNORED) {
            return Err(FolderError::Removed(self.path.clone()));
        }
        Ok(match event.name {
            Some(name) => Change::File(self.path.join(name)),
            None => Change::Any,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("podmotion-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        path
    }

    #[tokio::test]
    async fn files_are_told_as_they_come_and_go() {
        let path = folder("come-and-go");
        let watched = Folder::make(&path).unwrap();
        let file = path.join("a.sock");
        fs::write(&file, "").unwrap();
        assert!(
            watched
                .changes()
                .await
                .unwrap()
                .contains(&Change::File(file.clone()))
        );
        assert_eq!(watched.files().unwrap(), std::slice::from_ref(&file));
        fs::remove_file(&file).unwrap();
        let gone = watched.changes().await.unwrap();
        assert!(gone.contains(&Change::File(file)));
        fs::remove_dir_all(&path).unwrap();
    }

    #[tokio::test]
    async fn a_folder_that_is_removed_is_an_error() {
        let path = folder("removed");
        let watched = Folder::make(&path).unwrap();
        fs::remove_dir_all(&path).unwrap();
        let error = watched.changes().await.unwrap_err();
        assert!(error.to_string().contains("was removed"), "{error}");
    }
}
