//! Which containerd runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use podmotion_model::chain::Chain;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// containerd answers in milliseconds, or is just being started.
const ANSWER: Duration = Duration::from_secs(10);

/// Its service's only method.
const VERSION: &str = "/containerd.services.version.v1.Version/Version";

/// containerd has not said which version it is.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// Nobody listens.
    #[error("connect to {address}: {}", Chain(source))]
    Connect {
        /// The socket.
        address: String,
        /// The library's answer.
        #[source]
        source: tonic::transport::Error,
    },
    /// The call failed.
    #[error("ask containerd at {address} for its version: {source}")]
    Call {
        /// The socket.
        address: String,
        /// Its answer.
        #[source]
        source: Box<Status>,
    },
    /// It does not answer.
    #[error("ask containerd at {0} for its version: no answer in {ANSWER:?}")]
    Silent(String),
}

/// The part of its answer that is of use.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct VersionResponse {
    #[prost(string, tag = "1")]
    version: String,
}

/// The version of the containerd at `address`, such as `unix:///run/containerd/containerd.sock`.
///
/// # Errors
/// When it does not say.
pub async fn version(address: &str) -> Result<String, ContainerdError> {
    let asked = timeout(ANSWER, ask(address)).await;
    asked.unwrap_or_else(|_| Err(ContainerdError::Silent(address.to_owned())))
}

async fn ask(address: &str) -> Result<String, ContainerdError> {
    let connect = |source| ContainerdError::Connect {
        address: address.to_owned(),
        source,
    };
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(connect)?;
    let mut client: Grpc<Channel> = Grpc::new(endpoint.connect().await.map_err(connect)?);
    client.ready().await.map_err(connect)?;
    let codec = ProstCodec::<(), VersionResponse>::default();
    let path = PathAndQuery::from_static(VERSION);
    let answer = client.unary(Request::new(()), path, codec).await;
    let answer = answer.map_err(|source| ContainerdError::Call {
        address: address.to_owned(),
        source: Box::new(source),
    })?;
    Ok(answer.into_inner().version)
}

/// The socket's file, where the address is one of a file.
pub fn socket(address: &str) -> Option<PathBuf> {
    address
        .strip_prefix("unix://")
        .map(|path| Path::new(path).to_owned())
}
