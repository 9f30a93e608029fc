//! The shim of the self-test's pod: asked over its own socket, as `podmotion` asks it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use podmotion_proto::shim::v1::{Container, InspectRequest, ShimClient, SleepRequest};
use podmotion_proto::ttrpc;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::client::PATIENCE;

/// What the shim did not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    /// Nobody listens.
    #[error("connect to the shim at {}: {source}", socket.display())]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// No answer.
    #[error("{call}: the shim at {} does not answer in {PATIENCE:?}", socket.display())]
    Silent {
        /// What was asked.
        call: &'static str,
        /// Its socket.
        socket: PathBuf,
    },
    /// Its answer is an error, here in its words.
    #[error("{0}")]
    Refused(String),
    /// The connection broke, or the answer is none.
    #[error("{call}: the shim at {}: {source}", socket.display())]
    Broken {
        /// What was asked.
        call: &'static str,
        /// Its socket.
        socket: PathBuf,
        /// The library's answer.
        #[source]
        source: ttrpc::Error,
    },
    /// It has answered without saying anything.
    #[error("inspect: the shim at {}: an empty answer", .0.display())]
    Empty(PathBuf),
}

/// A connection to the shim, about one container.
pub(crate) struct Shim {
    client: ShimClient,
    socket: PathBuf,
    id: String,
}

impl Shim {
    /// Connects to the shim of `sandbox`, about its container `id`.
    pub(crate) async fn connect(folder: &Path, sandbox: &str, id: &str) -> Result<Self, ShimError> {
        let socket = folder.join(format!("{sandbox}.sock"));
        let stream = UnixStream::connect(&socket)
            .await
            .map_err(|source| ShimError::Connect {
                socket: socket.clone(),
                source,
            })?;
        Ok(Self {
            client: ShimClient::new(ttrpc::r#async::Client::new(stream.into())),
            socket,
            id: id.to_owned(),
        })
    }

    /// What it says of the container.
    pub(crate) async fn inspect(&self) -> Result<Container, ShimError> {
        let request = InspectRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let call = self.client.inspect(context(), &request);
        let answer = self.wait("inspect", call).await?;
        let empty = || ShimError::Empty(self.socket.clone());
        answer.container.into_option().ok_or_else(empty)
    }

    /// Puts the container to sleep; returns when it sleeps.
    pub(crate) async fn sleep(&self) -> Result<(), ShimError> {
        let request = SleepRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        let call = self.client.sleep(context(), &request);
        self.wait("sleep", call).await.map(drop)
    }

    async fn wait<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, ShimError> {
        let socket = || self.socket.clone();
        match timeout(PATIENCE, answer).await {
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
            }),
        }
    }
}

/// The library's own limit, later than the one here, which knows more to say.
fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(PATIENCE + Duration::from_secs(1))
}
