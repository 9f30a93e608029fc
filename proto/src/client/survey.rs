//! What all shims of a node say.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::task::JoinSet;

use super::{Shim, ShimError};
use crate::shim::v1::Container;

/// How sockets end.
const SUFFIX: &str = "sock";

/// The folder of the sockets cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("list the shims' sockets in {}: {source}", folder.display())]
pub struct FolderError {
    /// The folder.
    pub folder: PathBuf,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

/// A container and the shim that looks after it.
#[derive(Clone, Debug)]
pub struct Found {
    /// The shim's socket.
    pub socket: PathBuf,
    /// What the shim says.
    pub container: Container,
    /// It is the pod's own.
    pub sandbox: bool,
}

impl Found {
    /// A container that the shim on `socket` has told of.
    pub fn new(socket: &Path, container: Container) -> Self {
        Self {
            sandbox: is_sandbox(socket, &container),
            socket: socket.to_owned(),
            container,
        }
    }
}

/// What all shims said.
#[derive(Debug, Default)]
pub struct Survey {
    /// All containers, by the pods' names.
    pub found: Vec<Found>,
    /// The sockets of those who have answered.
    pub answered: BTreeSet<PathBuf>,
    /// What was not to be had of whom.
    pub silent: Vec<ShimError>,
}

/// Asks every shim that has a socket in `folder`, all at the same time.
///
/// # Errors
/// When the folder cannot be read. One that does not exist has no shims.
pub async fn survey(folder: &Path) -> Result<Survey, FolderError> {
    let mut asking = JoinSet::new();
    for socket in sockets(folder)? {
        asking.spawn(async move {
            let answer = list(&socket).await;
            (socket, answer)
        });
    }
    let mut survey = Survey::default();
    for (socket, answer) in asking.join_all().await {
        match answer {
            Ok(containers) => {
                let found = containers.into_iter().map(|one| Found::new(&socket, one));
                survey.found.extend(found);
                survey.answered.insert(socket);
            }
            // It has ended since the sockets were listed.
            Err(ShimError::Connect { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => survey.silent.push(error),
        }
    }
    survey.found.sort_by(|one, other| {
        let key = |found: &Found| {
            let container = &found.container;
            let (namespace, pod) = (&container.pod_namespace, &container.pod_name);
            (
                namespace.clone(),
                pod.clone(),
                !found.sandbox,
                container.name.clone(),
                container.id.clone(),
            )
        };
        key(one).cmp(&key(other))
    });
    survey.silent.sort_by_key(ToString::to_string);
    Ok(survey)
}

/// The containers of the shim on `socket`. A shim that ends while it is asked is gone.
async fn list(socket: &Path) -> Result<Vec<Container>, ShimError> {
    let broken = match Shim::connect(socket).await?.list().await {
        Err(error @ ShimError::Broken { .. }) => error,
        answer => return answer,
    };
    match Shim::connect(socket).await {
        Err(error) if error.is_dead() => Err(error),
        _ => Err(broken),
    }
}

/// The sockets in `folder`, by name.
///
/// # Errors
/// When the folder cannot be read. One that does not exist has none.
pub fn sockets(folder: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let failed = |source| FolderError {
        folder: folder.to_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut sockets = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        sockets.extend(Some(entry.path()).filter(|path| is_socket_name(path)));
    }
    sockets.sort();
    Ok(sockets)
}

/// Whether a file of this name is a shim's socket.
pub fn is_socket_name(path: &Path) -> bool {
    path.extension().is_some_and(|suffix| suffix == SUFFIX)
}

/// Whether a container is the pod's own. Its shim is named after it; so is the shim of a container without a pod.
pub fn is_sandbox(socket: &Path, container: &Container) -> bool {
    let group = socket.file_stem().unwrap_or_default();
    let reason = container.awake_reason.as_ref();
    reason.is_some_and(|reason| reason.name == "sandbox")
        || (!container.pod_name.is_empty() && group == container.id.as_str())
}

/// `NAMESPACE/POD/CONTAINER`; the id where there is no pod.
pub fn title(container: &Container) -> String {
    if container.pod_name.is_empty() {
        return container.id.clone();
    }
    format!(
        "{}/{}/{}",
        container.pod_namespace, container.pod_name, container.name
    )
}
