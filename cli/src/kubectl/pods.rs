//! Pods that a user names.

use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use crate::ask::AskError;
use crate::cluster::{self, Cluster, Manager};

/// Why nothing is known of a pod.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// There is none, or the user may not see it.
    #[error("{0}")]
    Get(String),
    /// It is not on a node.
    #[error("pod {0} is not on a node yet")]
    NotScheduled(String),
    /// Its node has no manager.
    #[error("pod {pod} is on node {node}, where Podmotion is not")]
    NoManager {
        /// The pod.
        pod: String,
        /// Its node.
        node: String,
    },
    /// It is not one of ours.
    #[error("pod {pod} is not run by Podmotion: its runtimeClassName is {class}")]
    OtherRuntime {
        /// The pod.
        pod: String,
        /// What it is instead.
        class: String,
    },
    /// The manager does not know it.
    #[error("{0}")]
    Unknown(String),
}

/// The manager that a pod's shim is beside.
///
/// # Errors
/// When there is none.
pub async fn manager_of(
    cluster: &Cluster,
    managers: &[Manager],
    name: &str,
) -> Result<Manager, PodError> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let pod = pods.get(name).await;
    let pod = pod.map_err(|error| PodError::Get(cluster::words(error)))?;
    find(&pod, managers, &format!("{}/{name}", cluster.namespace))
}

fn find(pod: &Pod, managers: &[Manager], title: &str) -> Result<Manager, PodError> {
    let title = || title.to_owned();
    let spec = pod.spec.as_ref();
    let class = spec.and_then(|spec| spec.runtime_class_name.as_deref());
    let Some(node) = spec.and_then(|spec| spec.node_name.clone()) else {
        return Err(PodError::NotScheduled(title()));
    };
    if class.is_none() {
        let class = "not set".to_owned();
        return Err(PodError::OtherRuntime {
            pod: title(),
            class,
        });
    }
    match managers.iter().find(|manager| manager.node == node) {
        Some(manager) => Ok(manager.clone()),
        None => Err(PodError::NoManager { pod: title(), node }),
    }
}

/// What a manager does not know is a pod that is not there.
pub fn unknown(error: AskError) -> anyhow::Error {
    match error {
        AskError::NotFound { words, .. } => PodError::Unknown(words).into(),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_is_not_ours_is_told_from_one_without_a_manager() {
        let managers = [Manager {
            node: "n1".into(),
            pod: "manager".into(),
            port: 8090,
        }];
        let pod = |node: Option<&str>, class: Option<&str>| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "cart"},
                "spec": {"nodeName": node, "runtimeClassName": class, "containers": []},
            }))
            .unwrap()
        };
        let find = |pod| find(&pod, &managers, "shop/cart");
        assert_eq!(
            find(pod(Some("n1"), Some("podmotion"))).unwrap(),
            managers[0]
        );
        for (pod, words) in [
            (pod(None, Some("podmotion")), "not on a node yet"),
            (pod(Some("n1"), None), "its runtimeClassName is not set"),
            (
                pod(Some("n2"), Some("podmotion")),
                "on node n2, where Podmotion is not",
            ),
        ] {
            let error = find(pod).unwrap_err().to_string();
            assert!(
                error.contains(words) && error.contains("shop/cart"),
                "{error}"
            );
        }
    }
}
