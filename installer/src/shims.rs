//! The shims that run: has what sleeps in them wake, and stay awake.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podmotion_proto::shim::v1::{Container, ListResponse, ShimClient, WakeRequest, WatchRequest};
use podmotion_proto::ttrpc;
use tokio::net::UnixStream;

use crate::files::{FileError, failed};

/// The longest that a wake may take: a restore that is tried twice, with all of its memory.
const WAKE: Duration = Duration::from_secs(180);

/// A container cannot be kept awake.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The sockets cannot be listed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The shim does not answer.
    #[error("the shim on {}: {call}: {source}", socket.display())]
    Call {
        /// Its socket.
        socket: PathBuf,
        /// What was asked.
        call: String,
        /// Its answer.
        #[source]
        source: ttrpc::Error,
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
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        // Left over from a shim that was killed.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("connect to", socket)(error).into()),
    };
    let client = ShimClient::new(ttrpc::r#async::Client::new(stream.into()));
    let failed = |call: String| {
        let socket = socket.to_owned();
        move |source| ShimError::Call {
            socket,
            call,
            source,
        }
    };
    let watch = async |revision| -> Result<ListResponse, ShimError> {
        let request = WatchRequest {
            revision,
            timeout_ms: 1000,
            ..Default::default()
        };
        let call = client.watch(ttrpc::context::with_duration(WAKE), &request);
        call.await.map_err(failed("list".to_owned()))
    };
    let mut seen = watch(0).await?;
    let all = std::mem::take(&mut seen.containers);
    let mut woken = Vec::new();
    for container in &all {
        let request = WakeRequest {
            id: container.id.clone(),
            stay: true,
            ..Default::default()
        };
        let call = client.wake(ttrpc::context::with_duration(WAKE), &request);
        match call.await {
            Ok(_) if sleeps(container) => woken.push(name(container)),
            Ok(_) => {}
            Err(_) if !is_there(&watch(0).await?, container) => {}
            Err(error) => return Err(failed(format!("wake {}", name(container)))(error)),
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
            let container = name(container);
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

fn name(container: &Container) -> String {
    match container.pod_name.as_str() {
        "" => container.id.clone(),
        pod => format!("{}/{pod}/{}", container.pod_namespace, container.name),
    }
}

fn sockets(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed("list", folder))?,
    };
    let mut sockets = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed("list", folder))?.path();
        sockets.extend(Some(path).filter(|path| path.extension().is_some_and(|end| end == "sock")));
    }
    sockets.sort();
    Ok(sockets)
}
