//! containerd's gRPC API, blocking.

use std::future::Future;
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::PATIENCE;

/// Generated from `proto/`.
#[allow(missing_docs, unused_qualifications, dead_code, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/api.rs"));
}

pub(crate) use generated::containerd::events as task_events;
pub(crate) use generated::containerd::runc::v1 as runc_options;
pub(crate) use generated::containerd::services::containers::v1 as containers;
pub(crate) use generated::containerd::services::content::v1 as content;
pub(crate) use generated::containerd::services::events::v1 as events;
pub(crate) use generated::containerd::services::images::v1 as images;
pub(crate) use generated::containerd::services::snapshots::v1 as snapshots;
pub(crate) use generated::containerd::services::tasks::v1 as tasks;
pub(crate) use generated::containerd::services::version::v1 as version;
pub(crate) use generated::containerd::types::Mount;
pub(crate) use generated::containerd::v1::types::{Process, Status as TaskStatus};
pub(crate) use generated::runtime::v1 as cri;

/// CRI's containerd namespace, for everything: so an image is unpacked once.
pub const NAMESPACE: &str = "k8s.io";

/// What the daemon answered with, where it answered with an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reached {
    /// The call went well.
    Ok,
    /// Status code and message of the answer.
    Refused(String),
}

/// The daemon's status code and message in an error that came from a call, without the harness's context.
pub fn rpc_message(error: &anyhow::Error) -> Option<String> {
    error
        .downcast_ref::<Status>()
        .map(|status| format!("{:?}: {}", status.code(), status.message()))
}

impl Reached {
    /// Turns a call's result into something to compare; errors of the harness itself stay errors.
    pub fn of<T>(result: Result<T>) -> Result<Self> {
        match result {
            Ok(_) => Ok(Self::Ok),
            Err(error) => match rpc_message(&error) {
                Some(message) => Ok(Self::Refused(message)),
                None => Err(error),
            },
        }
    }
}

/// The threads that all gRPC of this binary runs on.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("start the gRPC threads")
    })
}

/// A connection to one daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    channel: Channel,
}

impl Api {
    /// Connects; the socket must be there and listening.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .with_context(|| format!("{} as an address", socket.display()))?;
        let channel = runtime()
            .block_on(endpoint.connect())
            .with_context(|| format!("connect to {}", socket.display()))?;
        Ok(Self { channel })
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request in one of containerd's namespaces.
    pub(crate) fn request<T>(namespace: &'static str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(
            "containerd-namespace",
            tonic::metadata::MetadataValue::from_static(namespace),
        );
        request
    }

    /// Waits for a call's answer, for at most [`PATIENCE`]. The daemon's answer stays the error's source.
    pub(crate) fn wait<T>(
        what: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        runtime()
            .block_on(async { tokio::time::timeout(PATIENCE, call).await })
            .map_err(|_| anyhow!("{what}: no answer in {PATIENCE:?}"))?
            .map(Response::into_inner)
            .map_err(|status| anyhow::Error::new(status).context(what.to_owned()))
    }
}

/// `rpc!(api, tasks::tasks_client::TasksClient, create, message)`: one call in the harness's namespace.
macro_rules! rpc {
    ($api:expr, $client:ty, $method:ident, $message:expr) => {{
        let message = $message;
        let what = concat!("call ", stringify!($method));
        let channel = $api.channel();
        crate::api::Api::wait(what, async move {
            <$client>::new(channel)
                .$method(crate::api::Api::request(crate::api::NAMESPACE, message))
                .await
        })
    }};
}
pub(crate) use rpc;
