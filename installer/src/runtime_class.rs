//! The cluster's RuntimeClass. Every node's installer applies the same one, so it does not matter which
//! is the first. It can only be had for pods on nodes with the labels.

use std::collections::BTreeMap;

use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::{Client, Config};
use podmotion_model::overhead::SHIM_MEMORY;
use serde_json::{Value, json};

use crate::containerd::runtime::NAME;

/// Who owns the fields that are applied.
const MANAGER: &str = "podmotion-installer";
/// By which it is known that it was made by an installer.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// The cluster did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClassError {
    /// There is no cluster to be found from here.
    #[error(
        "no Kubernetes API: run as a pod with a service account, set KUBECONFIG, or say --runtime-class none"
    )]
    Cluster(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The API server refused.
    #[error("{operation} RuntimeClass {name}: {source}")]
    Api {
        /// What was asked.
        operation: &'static str,
        /// The class.
        name: String,
        /// Its answer.
        #[source]
        source: Box<kube::Error>,
    },
}

/// What there is to be, on nodes with these labels.
fn class(name: &str, nodes: &[(String, String)]) -> Value {
    let nodes: BTreeMap<_, _> = nodes.iter().cloned().collect();
    json!({
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": name, "labels": {MANAGED_BY: MANAGER}},
        "handler": NAME,
        "overhead": {"podFixed": {"memory": SHIM_MEMORY.0.to_string()}},
        "scheduling": {"nodeSelector": nodes},
    })
}

/// Makes it for nodes with these labels, or puts right what others have changed of it.
///
/// # Errors
/// When the cluster refuses.
pub async fn apply(name: &str, nodes: &[(String, String)]) -> Result<(), ClassError> {
    let parameters = PatchParams::apply(MANAGER).force();
    let applied = classes()
        .await?
        .patch(name, &parameters, &Patch::Apply(class(name, nodes)))
        .await;
    applied.map(drop).map_err(failed("apply", name))
}

/// Removes it if an installer has made it. Whether it has. Pods that run with it go on; new ones are refused.
///
/// # Errors
/// When the cluster refuses.
pub async fn remove(name: &str) -> Result<bool, ClassError> {
    let classes = classes().await?;
    let found = classes.get_opt(name).await.map_err(failed("get", name))?;
    let ours = found.is_some_and(|class| {
        let labels = class.metadata.labels.unwrap_or_default();
        labels.get(MANAGED_BY).is_some_and(|by| by == MANAGER)
    });
    if !ours {
        return Ok(false);
    }
    match classes.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(true),
        // Another node's was faster.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
        Err(error) => Err(failed("delete", name)(error)),
    }
}

async fn classes() -> Result<Api<RuntimeClass>, ClassError> {
    let config = Config::infer()
        .await
        .map_err(|error| ClassError::Cluster(error.into()))?;
    let client = Client::try_from(config).map_err(|error| ClassError::Cluster(error.into()))?;
    Ok(Api::all(client))
}

fn failed(operation: &'static str, name: &str) -> impl FnOnce(kube::Error) -> ClassError {
    let name = name.to_owned();
    move |source| ClassError::Api {
        operation,
        name,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_kubernetes_takes() {
        let nodes = [("example.com/pool".to_owned(), "sleepy".to_owned())];
        let class: RuntimeClass = serde_json::from_value(class("podmotion", &nodes)).unwrap();
        assert_eq!(class.handler, "podmotion");
        let overhead = class.overhead.unwrap().pod_fixed.unwrap();
        assert_eq!(overhead["memory"].0, "2097152");
        let selector = class.scheduling.unwrap().node_selector.unwrap();
        assert_eq!(selector["example.com/pool"], "sleepy");
    }
}
