//! Follows the shims: one task for each socket in their folder, which waits for the shim's next answer.
//!
//! Nothing is asked again and again, except a shim that has a socket and does not answer. This is the
//! owner of the [`Store`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use podmotion_proto::client::{Shim, ShimError, is_socket_name};
use podmotion_proto::shim::v1::Container;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::folder::{Change, Folder, FolderError};
use crate::store::{Report, Store};

/// A shim that lives answers in milliseconds; on a machine that is overloaded it can take seconds.
const ANSWER: Duration = Duration::from_secs(10);

/// A shim that has nothing new says so after this time: that is how one that hangs is noticed.
const QUIET: Duration = Duration::from_secs(60);

/// Between two tries with a shim that does not answer, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Follows all shims until the folder cannot be watched any more.
pub async fn follow(folder: Folder, store: watch::Sender<Store>) -> Result<(), FolderError> {
    let (tell, mut reports) = mpsc::unbounded_channel();
    let mut followed = Followed {
        tasks: BTreeMap::new(),
        tell,
    };
    // The folder is watched already: a socket that appears meanwhile is not missed.
    followed.look(folder.files()?);
    loop {
        tokio::select! {
            changes = folder.changes() => {
                for change in changes? {
                    match change {
                        Change::File(path) => followed.look(vec![path]),
                        Change::Any => followed.look(folder.files()?),
                    }
                }
            }
            Some(report) = reports.recv() => {
                let gone = match &report {
                    Report::Gone(group) => followed.tasks.remove(group),
                    _ => None,
                };
                store.send_if_modified(|store| store.take_in(report));
                if let Some(gone) = gone {
                    // Another of the same name may have come since.
                    followed.look(vec![gone.socket.clone()]);
                }
            }
        }
    }
}

/// The tasks, by group.
struct Followed {
    tasks: BTreeMap<String, Task>,
    tell: mpsc::UnboundedSender<Report>,
}

struct Task {
    socket: PathBuf,
    /// Something has happened to the socket: worth another try at once.
    again: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Followed {
    fn look(&mut self, paths: Vec<PathBuf>) {
        for path in paths {
            let Some(group) = group(&path) else { continue };
            match self.tasks.get(group) {
                Some(task) => task.again.notify_one(),
                None if path.exists() => self.start(group.to_owned(), path),
                None => {}
            }
        }
    }

    fn start(&mut self, group: String, socket: PathBuf) {
        let again = Arc::new(Notify::new());
        let task = tokio::spawn(follow_one(
            group.clone(),
            socket.clone(),
            Arc::clone(&again),
            self.tell.clone(),
        ));
        let task = Task {
            socket,
            again,
            task,
        };
        self.tasks.insert(group, task);
    }
}

/// The shim whose socket this is.
fn group(path: &Path) -> Option<&str> {
    path.file_stem()?.to_str().filter(|_| is_socket_name(path))
}

/// Follows one shim for as long as it has a socket.
async fn follow_one(
    group: String,
    socket: PathBuf,
    again: Arc<Notify>,
    tell: mpsc::UnboundedSender<Report>,
) {
    let tell = |report| {
        // The receiver goes last.
        drop(tell.send(report));
    };
    let mut wait = RETRY.0;
    let mut known = None;
    loop {
        let error = match Shim::connect_within(&socket, ANSWER).await {
            Ok(shim) => {
                listen(shim, |containers| {
                    wait = RETRY.0;
                    known = None;
                    tell(Report::Told(group.clone(), containers));
                })
                .await
            }
            Err(error) => error,
        };
        if !socket.exists() {
            info!("the shim {group} has ended");
            return tell(Report::Gone(group));
        }
        let why = error.without_socket();
        // A shim that is starting has a socket before it listens: the second try counts.
        if wait > RETRY.0 && known.as_ref() != Some(&why) {
            warn!("{}: {why}", socket.display());
            tell(Report::Silent(group.clone(), why.clone()));
            known = Some(why);
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY.1),
            () = again.notified() => {}
        }
    }
}

/// Passes on what a shim says until it says no more.
async fn listen(shim: Shim, mut told: impl FnMut(Vec<Container>)) -> ShimError {
    let mut revision = 0;
    loop {
        match shim.watch(revision, QUIET).await {
            Ok(answer) => {
                revision = answer.revision;
                told(answer.containers);
            }
            Err(error) => return error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_of_shims_have_a_group() {
        assert_eq!(group(Path::new("/run/shims/abc.sock")), Some("abc"));
        assert_eq!(group(Path::new("/run/shims/abc.lock")), None);
        assert_eq!(group(Path::new("/run/shims/.sock")), None);
    }
}
