//! The taint that keeps pods off a node until its self-test has passed.

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;

/// Its key. Whoever makes nodes gives it to them.
pub const NOT_READY: &str = "podmotion.komodor.com/not-ready";

/// What is left of a node's taints without ours; `None` where there is nothing to remove.
fn without(taints: Option<&[Taint]>) -> Option<Vec<Taint>> {
    let all = taints?;
    let left: Vec<Taint> = all
        .iter()
        .filter(|taint| taint.key != NOT_READY)
        .cloned()
        .collect();
    (left.len() != all.len()).then_some(left)
}

/// Removes it from the node `name`; whether it was there.
///
/// # Errors
/// When the API server does not do it. The list of taints belongs to nobody in particular, so it is
/// replaced only where it is still the one that was seen: a conflict is worth another try.
pub async fn remove_taint(client: &Client, name: &str) -> kube::Result<bool> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = nodes.get(name).await?;
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    let Some(left) = without(taints) else {
        return Ok(false);
    };
    let patch = json!({
        "metadata": {"resourceVersion": node.resource_version()},
        "spec": {"taints": left},
    });
    let params = PatchParams {
        field_manager: Some(crate::cluster::FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    nodes.patch(name, &params, &Patch::Merge(&patch)).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str) -> Taint {
        Taint {
            key: key.into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        }
    }

    #[test]
    fn only_our_taint_goes() {
        let other = taint("example.com/gpu");
        let left = without(Some(&[taint(NOT_READY), other.clone()]));
        assert_eq!(left, Some(vec![other.clone()]));
        assert_eq!(without(Some(&[taint(NOT_READY)])), Some(Vec::new()));
        assert_eq!(without(Some(&[other])), None);
        assert_eq!(without(None), None);
    }
}
