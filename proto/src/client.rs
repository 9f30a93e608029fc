//! The shims of this node, each by its socket.

mod request;
mod survey;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

pub use self::request::{Asked, Verb, ask};
pub use self::survey::{
    FolderError, Found, Survey, is_sandbox, is_socket_name, sockets, survey, title,
};
use crate::shim::v1::{
    Container, InspectRequest, ListRequest, ListResponse, ShimClient, SleepRequest, WakeRequest,
    WatchRequest,
};

/// A shim that lives answers in milliseconds; on a machine that is overloaded it can take seconds.
const ANSWER: Duration = Duration::from_secs(5);

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
    /// What it says, for those who name the socket themselves.
    pub fn without_socket(&self) -> String {
        match self {
            Self::Connect { source, .. } => format!("connect: {source}"),
            Self::Silent { call, within, .. } => format!("{call}: no answer in {within:?}"),
            Self::Refused(words) => words.clone(),
            Self::Broken { call, source, .. } => format!("{call}: {source}"),
            Self::Empty { call, .. } => format!("{call}: an empty answer"),
        }
    }

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
    answer: Duration,
}

impl Shim {
    /// Connects to a socket. That somebody listens does not say that he will answer.
    pub async fn connect(socket: &Path) -> Result<Self, ShimError> {
        Self::connect_within(socket, ANSWER).await
    }

    /// The same for those who wait longer, or less long, for what a shim can answer at once.
    pub async fn connect_within(socket: &Path, answer: Duration) -> Result<Self, ShimError> {
        let connecting = UnixStream::connect(socket);
        let socket = socket.to_owned();
        match timeout(answer, connecting).await {
            Ok(Ok(stream)) => Ok(Self {
                client: ShimClient::new(ttrpc::r#async::Client::new(stream.into())),
                socket,
                answer,
            }),
            Ok(Err(source)) => Err(ShimError::Connect { socket, source }),
            Err(_) => Err(ShimError::Silent {
                call: "connect",
                socket,
                within: answer,
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
        let call = self.client.list(context(self.answer), &request);
        Ok(self.wait("list", self.answer, call).await?.containers)
    }

    /// All its containers: at once with revision 0, else after the next change or `limit`.
    pub async fn watch(&self, revision: u64, limit: Duration) -> Result<ListResponse, ShimError> {
        let request = WatchRequest {
            revision,
            timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            ..Default::default()
        };
        let within = match revision {
            0 => self.answer,
            _ => limit + self.answer,
        };
        let call = self.client.watch(context(within), &request);
        self.wait("watch", within, call).await
    }

    /// One container.
    pub async fn inspect(&self, id: &str) -> Result<Container, ShimError> {
        let request = InspectRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let call = self.client.inspect(context(self.answer), &request);
        let answer = self.wait("inspect", self.answer, call).await?;
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
        self.wake_with(id, within, false).await
    }

    /// The same, and it stays awake from then on.
    pub async fn wake_to_stay(&self, id: &str, within: Duration) -> Result<(), ShimError> {
        self.wake_with(id, within, true).await
    }

    async fn wake_with(&self, id: &str, within: Duration, stay: bool) -> Result<(), ShimError> {
        let request = WakeRequest {
            id: id.to_owned(),
            stay,
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
