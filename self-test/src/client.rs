//! containerd's gRPC API: one connection, each call with a limit.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

/// Generated from `proto/`.
#[allow(missing_docs, unused_qualifications, dead_code, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/api.rs"));
}

pub(crate) use generated::containerd::services::containers::v1 as containers;
pub(crate) use generated::containerd::services::leases::v1 as leases;
pub(crate) use generated::containerd::services::namespaces::v1 as namespaces;
pub(crate) use generated::containerd::services::snapshots::v1 as snapshots;
pub(crate) use generated::containerd::services::tasks::v1 as tasks;
pub(crate) use generated::containerd::services::version::v1 as version;
pub(crate) use generated::containerd::types::Mount;
pub(crate) use generated::io::containerd::cgroups::v1 as metrics_v1;
pub(crate) use generated::io::containerd::cgroups::v2 as metrics_v2;
pub(crate) use generated::runtime::v1 as cri;
pub(crate) use generated::runtimeoptions::v1 as runtimeoptions;

/// containerd's namespace in which all of the self-test's is, and nothing else.
pub(crate) const NAMESPACE: &str = "podmotion-self-test";

/// For one answer: far more than the slowest takes on an overloaded node.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A call that did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// The socket is no address.
    #[error("{} as an address", socket.display())]
    Address {
        /// The socket.
        socket: PathBuf,
        /// The library's answer.
        #[source]
        source: tonic::transport::Error,
    },
    /// Nobody listens.
    #[error("connect to containerd at {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The library's answer.
        #[source]
        source: tonic::transport::Error,
    },
    /// There is no socket, or no way to it.
    #[error("connect to containerd at {}", socket.display())]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// No answer.
    #[error("{call}: containerd does not answer in {PATIENCE:?}")]
    Silent {
        /// What was asked.
        call: &'static str,
    },
    /// The daemon's answer is an error, here in its words.
    #[error("{call}: {}", status.message())]
    Refused {
        /// What was asked.
        call: &'static str,
        /// The answer.
        status: Box<Status>,
    },
}

impl CallError {
    /// A service that is starting says so, before containerd 2 without a code for it.
    pub(crate) fn is_starting(&self) -> bool {
        matches!(self, Self::Refused { status, .. }
            if matches!(status.code(), Code::Unavailable | Code::Unknown))
    }

    /// What was to be acted on does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.code() == Code::NotFound)
    }
}

/// A connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
    lease: Option<MetadataValue<Ascii>>,
}

impl Client {
    /// Connects to the daemon at `socket`.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, CallError> {
        // The library's own error does not say why.
        tokio::net::UnixStream::connect(socket)
            .await
            .map_err(|source| CallError::Socket {
                socket: socket.to_owned(),
                source,
            })?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
        let endpoint = endpoint.map_err(|source| CallError::Address {
            socket: socket.to_owned(),
            source,
        })?;
        let channel = timeout(PATIENCE, endpoint.connect())
            .await
            .map_err(|_| CallError::Silent { call: "connect" })?
            .map_err(|source| CallError::Connect {
                socket: socket.to_owned(),
                source,
            })?;
        Ok(Self {
            channel,
            lease: None,
        })
    }

    /// The same connection; what is made over it is kept by the lease `id`.
    pub(crate) fn under_lease(&self, id: &str) -> Self {
        Self {
            channel: self.channel.clone(),
            // Ids are of letters, digits and hyphens.
            lease: id.parse().ok(),
        }
    }

    /// For a service's client.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request in [`NAMESPACE`].
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert(
            "containerd-namespace",
            MetadataValue::from_static(NAMESPACE),
        );
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        request
    }

    /// Waits for the answer of `call`.
    pub(crate) async fn wait<T>(
        call: &'static str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        match timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(CallError::Refused {
                call,
                status: Box::new(status),
            }),
            Err(_) => Err(CallError::Silent { call }),
        }
    }
}

/// `call!(client, tasks::tasks_client::TasksClient, create, message)`: one call, a future of its answer.
macro_rules! call {
    ($client:expr, $service:ident::$module:ident::$kind:ident, $method:ident, $message:expr) => {{
        let request = $client.request($message);
        let mut service = crate::client::$service::$module::$kind::new($client.channel());
        crate::client::Client::wait(
            concat!("call ", stringify!($service), " ", stringify!($method)),
            async move { service.$method(request).await },
        )
    }};
}
pub(crate) use call;
