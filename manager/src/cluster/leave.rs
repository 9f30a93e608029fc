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
use super::requests::{self, OriginalsError};
use super::step::{Step, condition_of, labels_of};
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
    #[error(transparent)]
    Originals(#[from] OriginalsError),
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

async fn pass(client: &Client, node: &str, class: &str) -> Result<(), LeaveError> {
    let mut pods = std::pin::pin!(pods::list(client.clone(), node, class));
    while let Some(mut pod) = pods.try_next().await? {
        while let Some(step) = next(&pod)? {
            let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
            info!("{namespace}/{name}: {step:?}");
            pod = edge::perform(client, &pod, &step).await?;
        }
    }
    Ok(())
}

/// What is next to be given back; `None` where there is nothing of ours.
fn next(pod: &Pod) -> Result<Option<Step>, OriginalsError> {
    let noted = requests::originals(pod)?;
    let lowered = requests::lowered(pod, &noted);
    if !lowered.is_empty() {
        return Ok(Some(Step::Restore(lowered)));
    }
    Ok(if !noted.is_empty() || !labels_of(pod).is_empty() {
        let (labels, originals) = Default::default();
        Some(Step::Metadata { labels, originals })
    } else {
        condition_of(pod).map(|_| Step::Condition(None))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_go_back_first_and_what_others_have_set_stays() {
        let original = json!({"web": {"cpu": "500m", "memory": "1Gi"}});
        let mut pod = json!({
            "metadata": {
                "name": "pod",
                "labels": {"status.podmotion.komodor.com/web": "ScaledDown"},
                "annotations": {requests::ORIGINALS: original.to_string()},
            },
            "spec": {"containers": [
                {"name": "web", "resources": {"requests": {"cpu": "1m", "memory": "2Gi"}}},
            ]},
            "status": {"conditions": [
                {"type": "podmotion.komodor.com/Asleep", "status": "True"},
            ]},
        });
        let step = |pod: &serde_json::Value| {
            let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
            next(&pod).unwrap()
        };
        let Some(Step::Restore(back)) = step(&pod) else {
            panic!("nothing is restored");
        };
        assert_eq!(json!(back), json!({"web": {"cpu": "500m"}}));
        pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("500m");
        let Some(Step::Metadata { labels, originals }) = step(&pod) else {
            panic!("the metadata stays");
        };
        assert!(labels.is_empty() && originals.is_empty());
        pod["metadata"] = json!({"name": "pod"});
        assert_eq!(step(&pod), Some(Step::Condition(None)));
        pod["status"] = json!({});
        assert_eq!(step(&pod), None);
    }
}
