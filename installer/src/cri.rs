//! What containerd says about itself, over the container runtime interface: that it answers there means that
//! its plugin for Kubernetes has taken its configuration.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::containerd::runtime::Effective;

/// Generated from `proto/`.
#[allow(missing_docs, unused_qualifications, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/cri_api.rs"));
}

use generated::runtime::v1::runtime_service_client::RuntimeServiceClient;
use generated::runtime::v1::{StatusRequest, VersionRequest};

/// One that lives answers in milliseconds, and on a machine that is overloaded in seconds.
const ANSWER: Duration = Duration::from_secs(10);

/// containerd does not say what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Nobody listens.
    #[error("containerd does not listen on {}: {source}", socket.display())]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// It answers with an error: the plugin for Kubernetes has not started.
    #[error("containerd's CRI on {} does not answer {call}: {}", socket.display(), status.message())]
    Refused {
        /// Its socket.
        socket: PathBuf,
        /// What was asked.
        call: &'static str,
        /// Its answer.
        status: Box<Status>,
    },
    /// It does not answer.
    #[error("containerd's CRI on {} has not answered {call} within {ANSWER:?}", socket.display())]
    Silent {
        /// Its socket.
        socket: PathBuf,
        /// What was asked.
        call: &'static str,
    },
    /// Another program, or another answer than containerd's.
    #[error("{} answers as no containerd does: {what}", socket.display())]
    Answer {
        /// Its socket.
        socket: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// A containerd that answers.
#[derive(Clone, Debug)]
pub struct About {
    /// Its version, as it says it.
    pub version: String,
    /// The configuration that it runs with.
    pub effective: Effective,
}

/// Asks the containerd on `socket`.
///
/// # Errors
/// When it does not answer.
pub async fn ask(socket: &Path) -> Result<About, CriError> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
    let connect = |source| CriError::Connect {
        socket: socket.to_owned(),
        source,
    };
    let channel = endpoint.map_err(connect)?;
    let channel = channel.connect_timeout(ANSWER).connect().await;
    let mut client = RuntimeServiceClient::<Channel>::new(channel.map_err(connect)?)
        .max_decoding_message_size(usize::MAX);
    let call = client.version(VersionRequest::default());
    let version = answer(socket, "Version", call).await?;
    let strange = |what: String| CriError::Answer {
        socket: socket.to_owned(),
        what,
    };
    if version.runtime_name != "containerd" {
        return Err(strange(format!("it is {:?}", version.runtime_name)));
    }
    let call = client.status(StatusRequest { verbose: true });
    let status = answer(socket, "Status", call).await?;
    let config = status.info.get("config");
    let config = config.ok_or_else(|| strange("its status has no config".to_owned()))?;
    Ok(About {
        version: version.runtime_version,
        effective: Effective::parse(config)
            .map_err(|error| strange(format!("its config is no JSON: {error}")))?,
    })
}

async fn answer<T>(
    socket: &Path,
    call: &'static str,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, CriError> {
    let socket = || socket.to_owned();
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(CriError::Refused {
            socket: socket(),
            call,
            status: Box::new(status),
        }),
        Err(_) => Err(CriError::Silent {
            socket: socket(),
            call,
        }),
    }
}
