//! Giving pods back what is theirs, before Podmotion leaves the cluster: requests, labels, the condition.

use std::time::Duration;

use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt};
use podmotion_model::chain::Chain;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::edge::{self, EdgeError};
use super::pods;
use super::requests::OriginalsError;
use super::step::back;
use crate::health::Cluster as Health;

/// After a failure, before the next try.
const RETRY: Duration = Duration::from_secs(1);

/// Some pods still have something of ours.
#[derive(Debug, thiserror::Error)]
enum LeaveError {
    /// They cannot be listed.
    #[error("list the node's pods: {}", Chain(.0))]
    List(#[from] kube::Error),
    /// One cannot be changed.
    #[error(transparent)]
    Edge(#[from] EdgeError),
    /// An annotation cannot be read.
    #[error("pod {namespace}/{name}: {source}")]
    Originals {
        namespace: String,
        name: String,
        #[source]
        source: OriginalsError,
    },
}

/// Gives all pods of `node` back what is theirs. Ready from then on.
pub async fn leave(client: &Client, node: &str, class: &str, health: &watch::Sender<Health>) {
    while let Err(error) = pass(client, node, class).await {
        let error = error.to_string();
        if health.send_if_modified(|health| health.failed(&error)) {
            warn!("{error}");
        }
        sleep(RETRY).await;
    }
    info!("no pod of {node} has anything of ours any more");
    health.send_if_modified(Health::answered);
}

/// One that cannot be changed does not keep the others from what is theirs. The first error is the pass's.
async fn pass(client: &Client, node: &str, class: &str) -> Result<(), LeaveError> {
    let mut pods = std::pin::pin!(pods::list(client.clone(), node, class));
    let mut outcome = Ok(());
    while let Some(pod) = pods.try_next().await? {
        outcome = outcome.and(give_back(client, pod).await);
    }
    outcome
}

async fn give_back(client: &Client, mut pod: Pod) -> Result<(), LeaveError> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let unreadable = |source| LeaveError::Originals {
        namespace: namespace.clone(),
        name: name.clone(),
        source,
    };
    let mut last = None;
    while let Some(step) = back(&pod).map_err(unreadable)? {
        if last.as_ref() == Some(&step) {
            warn!("{namespace}/{name}: somebody else has set it too, it stays: {step:?}");
            break;
        }
        info!("{namespace}/{name}: {step:?}");
        pod = edge::perform(client, &pod, &step).await?;
        last = Some(step);
    }
    Ok(())
}
