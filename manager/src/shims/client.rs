//! A connection to one shim.

use std::io;
use std::path::Path;
use std::time::Duration;

use podmotion_proto::shim::v1::{ListResponse, ShimClient, WatchRequest};
use podmotion_proto::ttrpc;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// A shim that lives answers in milliseconds; on a machine that is overloaded it can take seconds.
const ANSWER: Duration = Duration::from_secs(10);

/// A shim that has nothing new says so after this time: that is how one that hangs is noticed.
const QUIET: Duration = Duration::from_secs(60);

/// What a shim did not do. The socket is named by whoever reports it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("connect: {0}")]
    Connect(#[source] io::Error),
    /// It did not answer in time.
    #[error("{call}: no answer in {within:?}")]
    Silent {
        /// What was asked.
        call: &'static str,
        /// The time it had.
        within: Duration,
    },
    /// The connection broke, or the answer is none.
    #[error("watch: {0}")]
    Watch(#[source] ttrpc::Error),
}

/// A connection.
pub struct Client {
    client: ShimClient,
    revision: u64,
}

impl Client {
    /// Connects to a socket. That somebody listens does not say that he will answer.
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let connecting = timeout(ANSWER, UnixStream::connect(socket));
        let silent = |_| ClientError::Silent {
            call: "connect",
            within: ANSWER,
        };
        let stream = connecting
            .await
            .map_err(silent)?
            .map_err(ClientError::Connect)?;
        Ok(Self {
            client: ShimClient::new(ttrpc::r#async::Client::new(stream.into())),
            revision: 0,
        })
    }

    /// All its containers: the first time at once, then after the next change or some time.
    pub async fn next(&mut self) -> Result<ListResponse, ClientError> {
        let request = WatchRequest {
            revision: self.revision,
            timeout_ms: u64::try_from(QUIET.as_millis()).unwrap_or(u64::MAX),
            ..Default::default()
        };
        let within = match self.revision {
            0 => ANSWER,
            _ => QUIET + ANSWER,
        };
        // The library's own limit is later: this one knows more to say.
        let context = ttrpc::context::with_duration(within + Duration::from_secs(1));
        let answer = timeout(within, self.client.watch(context, &request)).await;
        let silent = |_| ClientError::Silent {
            call: "watch",
            within,
        };
        let answer = answer.map_err(silent)?.map_err(ClientError::Watch)?;
        self.revision = answer.revision;
        Ok(answer)
    }
}
