//! The pods of the node that use our runtime class, without what is of no use here.

use std::collections::BTreeMap;

use futures_util::{Stream, StreamExt, TryStreamExt, future, stream};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use kube::api::{ListParams, ObjectMeta};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, Client};

use super::requests::ORIGINALS;
use super::status::{ASLEEP, LABEL};

/// Pods are listed in parts of this size: a list of all of them at once would be the manager's largest
/// piece of memory.
const PAGE: u32 = 20;

/// Follows the pods of `node` with this runtime class, trimmed.
pub fn follow(
    client: Client,
    node: &str,
    runtime_class: String,
) -> impl Stream<Item = watcher::Result<Event<Pod>>> + Send + 'static {
    let config = watcher::Config::default()
        .fields(&format!("spec.nodeName={node}"))
        .page_size(PAGE);
    watch_objects(Api::<Pod>::all(client), config)
        .default_backoff()
        .filter_map(move |event| future::ready(ours(event, &runtime_class)))
}

/// Lists them once, trimmed.
pub fn list(
    client: Client,
    node: &str,
    runtime_class: &str,
) -> impl Stream<Item = kube::Result<Pod>> + Send + 'static {
    let (api, class) = (Api::<Pod>::all(client), runtime_class.to_owned());
    let params = ListParams::default()
        .fields(&format!("spec.nodeName={node}"))
        .limit(PAGE);
    let pages = stream::try_unfold(Some(params), move |params| {
        let api = api.clone();
        async move {
            let Some(params) = params else {
                return Ok::<_, kube::Error>(None);
            };
            let page = api.list(&params).await?;
            let next = page.metadata.continue_.filter(|token| !token.is_empty());
            let next = next.map(|token| params.continue_token(&token));
            Ok(Some((stream::iter(page.items).map(kube::Result::Ok), next)))
        }
    });
    pages
        .try_flatten()
        .try_filter(move |pod| future::ready(is_ours(pod, &class)))
        .map_ok(trim)
}

fn is_ours(pod: &Pod, runtime_class: &str) -> bool {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.runtime_class_name.as_deref()) == Some(runtime_class)
}

fn ours(
    event: watcher::Result<Event<Pod>>,
    runtime_class: &str,
) -> Option<watcher::Result<Event<Pod>>> {
    let is = |pod: &Pod| is_ours(pod, runtime_class);
    let event = match event {
        Ok(Event::Apply(pod)) => Event::Apply(is(&pod).then(|| trim(pod))?),
        Ok(Event::InitApply(pod)) => Event::InitApply(is(&pod).then(|| trim(pod))?),
        Ok(Event::Delete(pod)) => Event::Delete(is(&pod).then(|| trim(pod))?),
        other => return Some(other),
    };
    Some(Ok(event))
}

/// What of a pod is looked at.
pub fn trim(pod: Pod) -> Pod {
    let Pod {
        metadata,
        spec,
        status,
        ..
    } = pod;
    let of_ours = |map: Option<BTreeMap<String, String>>, is: fn(&str) -> bool| {
        let kept: BTreeMap<_, _> = map
            .into_iter()
            .flatten()
            .filter(|(key, _)| is(key))
            .collect();
        (!kept.is_empty()).then_some(kept)
    };
    let metadata = ObjectMeta {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        resource_version: metadata.resource_version,
        labels: of_ours(metadata.labels, |key| key.starts_with(LABEL)),
        annotations: of_ours(metadata.annotations, |key| key == ORIGINALS),
        ..ObjectMeta::default()
    };
    let container = |one: Container| Container {
        name: one.name,
        resources: one.resources,
        resize_policy: one.resize_policy,
        ..Container::default()
    };
    let spec = spec.map(|spec| PodSpec {
        node_name: spec.node_name,
        runtime_class_name: spec.runtime_class_name,
        resources: spec.resources,
        containers: spec.containers.into_iter().map(container).collect(),
        ..PodSpec::default()
    });
    let status = status.map(|status| PodStatus {
        phase: status.phase,
        qos_class: status.qos_class,
        conditions: status.conditions.map(|all| {
            let is = |type_: &str| type_ == ASLEEP;
            all.into_iter().filter(|one| is(&one.type_)).collect()
        }),
        ..PodStatus::default()
    });
    Pod {
        metadata,
        spec,
        status,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(class: Option<&str>) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "labels": {"app": "web", "status.podmotion.komodor.com/web": "Running"},
                "annotations": {"note": "long"},
                "managedFields": [{"manager": "kubelet"}],
            },
            "spec": {
                "nodeName": "node-1", "runtimeClassName": class,
                "containers": [{"name": "web", "image": "web:1", "env": [{"name": "A", "value": "b"}],
                    "resources": {"requests": {"cpu": "100m"}}}],
            },
            "status": {
                "qosClass": "Burstable", "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"},
                    {"type": "podmotion.komodor.com/Asleep", "status": "False"}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn pods_of_other_classes_are_left_out() {
        for class in [None, Some("runc")] {
            assert!(ours(Ok(Event::Apply(pod(class))), "podmotion").is_none());
        }
        let kept = ours(Ok(Event::Apply(pod(Some("podmotion")))), "podmotion");
        assert!(matches!(kept, Some(Ok(Event::Apply(_)))));
        let done = ours(Ok(Event::InitDone), "podmotion");
        assert!(matches!(done, Some(Ok(Event::InitDone))));
    }

    #[test]
    fn of_a_pod_only_that_is_kept_which_is_looked_at() {
        let kept: Value = serde_json::to_value(trim(pod(Some("podmotion")))).unwrap();
        assert_eq!(
            kept["metadata"],
            json!({
                "name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "labels": {"status.podmotion.komodor.com/web": "Running"},
            })
        );
        assert_eq!(
            kept["spec"]["containers"],
            json!([{"name": "web", "resources": {"requests": {"cpu": "100m"}}}])
        );
        assert_eq!(
            kept["status"]["conditions"],
            json!([{"type": "podmotion.komodor.com/Asleep", "status": "False"}])
        );
    }
}
