//! Requests to the API server that change a pod.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use podmotion_model::chain::Chain;
use serde_json::{Value, json};

use super::FIELD_MANAGER;
use super::pods::trim;
use super::requests::{ORIGINALS, Requests};
use super::step::Step;

/// The API server has not done it.
#[derive(Debug, thiserror::Error)]
#[error("{operation} of pod {namespace}/{name}: {}", Chain(source))]
pub struct EdgeError {
    /// What was tried.
    pub operation: &'static str,
    namespace: String,
    name: String,
    #[source]
    source: kube::Error,
}

impl EdgeError {
    fn code(&self) -> Option<u16> {
        match &self.source {
            kube::Error::Api(status) => Some(status.code),
            _ => None,
        }
    }

    /// The pod is another meanwhile, or gone.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// The same would be refused again: not valid, not allowed, or not known to this API server.
    pub fn is_refusal(&self) -> bool {
        matches!(self.code(), Some(400 | 403 | 404 | 405 | 422))
    }
}

/// Takes a step. Returns the pod as it is afterwards, trimmed.
///
/// # Errors
/// When the API server does not do it.
pub async fn perform(client: &Client, pod: &Pod, step: &Step) -> Result<Pod, EdgeError> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let apply = PatchParams::apply(FIELD_MANAGER).force();
    let (operation, result) = match step {
        Step::Metadata { labels, originals } => {
            let mut annotations = json!({});
            if !originals.is_empty() {
                annotations[ORIGINALS] = json!(json!(originals).to_string());
            }
            let body = applied(
                pod,
                // Made of this version of the pod, and true of no other.
                json!({
                    "resourceVersion": pod.resource_version(),
                    "labels": labels,
                    "annotations": annotations,
                }),
            );
            let patched = api.patch(&name, &apply, &Patch::Apply(&body)).await;
            ("apply-metadata", patched)
        }
        Step::Condition(condition) => {
            let mut body = applied(pod, json!({}));
            // What is not applied any more goes.
            body["status"] = match condition {
                Some(condition) => json!({"conditions": [condition]}),
                None => json!({}),
            };
            let patched = api.patch_status(&name, &apply, &Patch::Apply(&body)).await;
            ("apply-condition", patched)
        }
        Step::Lower(requests) => ("lower-requests", resize(&api, pod, requests).await),
        Step::Restore(requests) => ("restore-requests", resize(&api, pod, requests).await),
    };
    result.map(trim).map_err(|source| EdgeError {
        operation,
        namespace,
        name,
        source,
    })
}

/// An applied configuration: the pod of this uid and no other of its name.
fn applied(pod: &Pod, mut metadata: Value) -> Value {
    metadata["name"] = json!(pod.metadata.name);
    metadata["uid"] = json!(pod.metadata.uid);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata})
}

/// Requests are not ours to own: applied ones would go when they are not applied any more.
async fn resize(api: &Api<Pod>, pod: &Pod, requests: &Requests) -> kube::Result<Pod> {
    let containers: Vec<Value> = requests
        .iter()
        .map(|(name, requests)| json!({"name": name, "resources": {"requests": requests}}))
        .collect();
    let body = json!({
        "metadata": {"resourceVersion": pod.resource_version(), "uid": pod.uid()},
        "spec": {"containers": containers},
    });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Strategic(&body);
    api.patch_resize(&pod.name_any(), &params, &patch).await
}
