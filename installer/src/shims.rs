//! The shims that run: has what sleeps in them wake, and stay awake.

use std::path::{Path, PathBuf};
use std::time::Duration;

use podmotion_proto::client::{self, FolderError, Shim, sockets, title};
use podmotion_proto::shim::v1::{Container, ListResponse};

/// The longest that a wake may take: a restore that is tried twice, with all of its memory.
const WAKE: Duration = Duration::from_secs(180);

/// How long a shim waits for a change before it says again how things are.
const CHANGE: Duration = Duration::from_secs(1);

/// A container cannot be kept awake.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The sockets cannot be listed.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The shim cannot be asked.
    #[error(transparent)]
    Connect(client::ShimError),
    /// The shim does not answer.
    #[error("the shim on {}: {call}: {}", socket.display(), source.without_socket())]
    Call {
        /// Its socket.
        socket: PathBuf,
        /// What was asked.
        call: String,
        /// Its answer.
        #[source]
        source: client::ShimError,
    },
    /// Its memory does not come back.
    #[error("container {container} has not all of its memory back within {WAKE:?}")]
    Filling {
        /// Its id.
        container: String,
    },
}

/// Has every container of every shim with a socket in `folder` wake, and stay awake from now on. Returns
/// those that have slept once all of their memory is back.
///
/// # Errors
/// When one does not wake. The others have been asked too.
pub async fn keep_awake(folder: &Path) -> Result<Vec<String>, ShimError> {
    let (mut woken, mut first_error) = (Vec::new(), None);
    for socket in sockets(folder)? {
        match keep_awake_on(&socket).await {
            Ok(names) => woken.extend(names),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    first_error.map_or(Ok(woken), Err)
}

async fn keep_awake_on(socket: &Path) -> Result<Vec<String>, ShimError> {
    let shim = match Shim::connect_within(socket, WAKE).await {
        Ok(shim) => shim,
        // Left over from a shim that was killed.
        Err(error) if error.is_dead() => return Ok(Vec::new()),
        Err(error) => return Err(ShimError::Connect(error)),
    };
    let failed = |call: String| {
        let socket = socket.to_owned();
        move |source| ShimError::Call {
            socket,
            call,
            source,
        }
    };
    let watch = async |revision| -> Result<ListResponse, ShimError> {
        let answer = shim.watch(revision, CHANGE).await;
        answer.map_err(failed("list".to_owned()))
    };
    let mut seen = watch(0).await?;
    let all = std::mem::take(&mut seen.containers);
    let mut woken = Vec::new();
    for container in &all {
        match shim.wake_to_stay(&container.id, WAKE).await {
            Ok(()) if sleeps(container) => woken.push(title(container)),
            Ok(()) => {}
            Err(_) if !is_there(&watch(0).await?, container) => {}
            Err(error) => return Err(failed(format!("wake {}", title(container)))(error)),
        }
    }
    let deadline = tokio::time::Instant::now() + WAKE;
    loop {
        let now = watch(seen.revision).await?;
        let filling = now.containers.iter().find(|one| {
            let reason = one.awake_reason.as_ref();
            reason.is_some_and(|reason| reason.name == "filling")
        });
        let Some(container) = filling else {
            return Ok(woken);
        };
        if tokio::time::Instant::now() > deadline {
            let container = title(container);
            return Err(ShimError::Filling { container });
        }
        seen.revision = now.revision;
    }
}

fn sleeps(container: &Container) -> bool {
    ["falling-asleep", "asleep", "waking"].contains(&container.state.as_str())
}

/// Whether the container has not ended since it was listed.
fn is_there(now: &ListResponse, container: &Container) -> bool {
    let found = now.containers.iter().find(|one| one.id == container.id);
    found.is_some_and(|one| one.state != "stopped")
}
