//! The shims of this node, each by its socket.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use podmotion_proto::shim::v1::{
    Container, InspectRequest, ListRequest, ListResponse, ShimClient, SleepRequest, WakeRequest,
    WatchRequest,
};
use podmotion_proto::ttrpc;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::select::is_sandbox;

/// A shim that lives answers in milliseconds; on a machine that is overloaded it can take seconds.
const ANSWER: Duration = Duration::from_secs(5);

/// How sockets end.
const SUFFIX: &str = "sock";

/// What a shim did not do.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// Nobody listens, or may.
    #[error("connect to {}: {source}", socket.display())]
    Connect {
        /// The shim's socket.
        socket: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("{} at {}: no answer in {:?}", call, socket.display(), within)]
    Silent {
        /// What was asked.
        call: &'static str,
        /// The shim's socket.
        socket: PathBuf,
        /// The time it had.
        within: Duration,
    },
    /// It answered with an error of its own, in its words.
    #[error("{0}")]
    Refused(String),
    /// The connection broke, or the answer is none.
    #[error("{} at {}: {source}", call, socket.display())]
    Broken {
        /// What was asked.
        call: &'static str,
        /// The shim's socket.
        socket: PathBuf,
        /// The library's answer.
        #[source]
        source: ttrpc::Error,
    },
    /// An answer without content.
    #[error("{} at {}: an empty answer", call, socket.display())]
    Empty {
        /// What was asked.
        call: &'static str,
        /// The shim's socket.
        socket: PathBuf,
    },
}

impl ShimError {
    /// Nobody listens any more: the socket is left over.
    pub fn is_dead(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        match self {
            Self::Connect { source, .. } => matches!(source.kind(), ConnectionRefused | NotFound),
            _ => false,
        }
    }
}

/// A connection to one shim.
#[derive(Clone)]
pub struct Shim {
    client: ShimClient,
    socket: PathBuf,
}

impl Shim {
    /// Connects to a socket. That somebody listens does not say that he will answer.
    pub async fn connect(socket: &Path) -> Result<Self, ShimError> {
        let connecting = UnixStream::connect(socket);
        let socket = socket.to_owned();
        match timeout(ANSWER, connecting).await {
            Ok(Ok(stream)) => Ok(Self {
                client: ShimClient::new(ttrpc::r#async::Client::new(stream.into())),
                socket,
            }),
            Ok(Err(source)) => Err(ShimError::Connect { socket, source }),
            Err(_) => Err(ShimError::Silent {
                call: "connect",
                socket,
                within: ANSWER,
            }),
        }
    }

    async fn wait<T>(
        &self,
        call: &'static str,
        within: Duration,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, ShimError> {
        let socket = || self.socket.clone();
        match timeout(within, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(ttrpc::Error::RpcStatus(status))) => Err(ShimError::Refused(status.message)),
            Ok(Err(source)) => Err(ShimError::Broken {
                call,
                socket: socket(),
                source,
            }),
            Err(_) => Err(ShimError::Silent {
                call,
                socket: socket(),
                within,
            }),
        }
    }

    /// All its containers.
    pub async fn list(&self) -> Result<Vec<Container>, ShimError> {
        let request = ListRequest::default();
        let call = self.client.list(context(ANSWER), &request);
        Ok(self.wait("list", ANSWER, call).await?.containers)
    }

    /// All its containers: at once with revision 0, else after the next change or `limit`.
    pub async fn watch(&self, revision: u64, limit: Duration) -> Result<ListResponse, ShimError> {
        let request = WatchRequest {
            revision,
            timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            ..Default::default()
        };
        let within = limit + ANSWER;
        let call = self.client.watch(context(within), &request);
        self.wait("watch", within, call).await
    }

    /// One container.
    pub async fn inspect(&self, id: &str) -> Result<Container, ShimError> {
        let request = InspectRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let call = self.client.inspect(context(ANSWER), &request);
        let answer = self.wait("inspect", ANSWER, call).await?;
        answer.container.into_option().ok_or(ShimError::Empty {
            call: "inspect",
            socket: self.socket.clone(),
        })
    }

    /// Puts a container to sleep; returns when it sleeps.
    pub async fn sleep(&self, id: &str, within: Duration) -> Result<(), ShimError> {
        let request = SleepRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let call = self.client.sleep(context(within + ANSWER), &request);
        self.wait("sleep", within, call).await.map(drop)
    }

    /// Wakes a container; returns when it runs.
    pub async fn wake(&self, id: &str, within: Duration) -> Result<(), ShimError> {
        let request = WakeRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let call = self.client.wake(context(within + ANSWER), &request);
        self.wait("wake", within, call).await.map(drop)
    }
}

/// The library's own limit, later than the one here, which knows more to say.
fn context(limit: Duration) -> ttrpc::context::Context {
    ttrpc::context::with_duration(limit + Duration::from_secs(1))
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

impl Survey {
    /// Says who did not answer; whether all have.
    pub fn complain(&self) -> bool {
        for error in &self.silent {
            crate::complain(&error.to_string());
        }
        self.silent.is_empty()
    }
}

/// Asks every shim that has a socket in `folder`, all at the same time.
///
/// # Errors
/// When the folder cannot be read. One that does not exist has no shims.
pub async fn survey(folder: &Path) -> Result<Survey> {
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
pub fn sockets(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => {
            other.with_context(|| format!("list the shims' sockets in {}", folder.display()))?
        }
    };
    let mut sockets = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        sockets.extend(Some(entry.path()).filter(|path| is_socket_name(path)));
    }
    sockets.sort();
    Ok(sockets)
}

/// Whether a file of this name is a shim's socket.
pub fn is_socket_name(path: &Path) -> bool {
    path.extension().is_some_and(|suffix| suffix == SUFFIX)
}

/// The event loop that the calls run in.
///
/// # Errors
/// When the system does not give what it needs.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")
}
