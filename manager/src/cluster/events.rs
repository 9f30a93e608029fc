//! Events about containers, sent to the API server.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use podmotion_model::chain::Chain;
use podmotion_proto::shim::v1::Container;
use tokio::sync::watch;
use tracing::warn;

use super::FIELD_MANAGER;
use super::notes::{Note, Seen, notes};
use crate::metrics::ApiErrors;
use crate::store::Store;

/// A recorder knows for six minutes what it has sent.
const KNOWN: Duration = Duration::from_secs(360);

/// Sends events.
pub struct Events {
    client: Client,
    reporter: Reporter,
    /// Each counts what has its text, and when it was last used: to one of them for all, what differs in nothing
    /// but its text would be the first once more.
    recorders: Mutex<HashMap<String, (Instant, Recorder)>>,
    errors: ApiErrors,
}

impl Events {
    /// In the name of the manager of `node`.
    pub fn new(client: Client, node: &str, errors: ApiErrors) -> Self {
        let reporter = Reporter {
            controller: FIELD_MANAGER.to_owned(),
            instance: Some(node.to_owned()),
        };
        Self {
            recorders: Mutex::default(),
            client,
            reporter,
            errors,
        }
    }

    /// The one that counts events with this text.
    fn recorder(&self, text: &str) -> Recorder {
        let now = Instant::now();
        let all = self.recorders.lock();
        let mut all = all.unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (used, _)| now.duration_since(*used) < KNOWN);
        let new = || Recorder::new(self.client.clone(), self.reporter.clone());
        let (used, recorder) = all.entry(text.to_owned()).or_insert_with(|| (now, new()));
        *used = now;
        recorder.clone()
    }

    /// Sends one. What cannot be sent is logged and counted: it is told by nothing else.
    pub async fn publish(&self, object: &ObjectReference, note: &Note) {
        let event = Event {
            type_: match note.warning {
                true => EventType::Warning,
                false => EventType::Normal,
            },
            reason: note.reason.to_owned(),
            note: Some(note.text.clone()),
            action: note.action.to_owned(),
            secondary: None,
        };
        let sent = match note.warning {
            // Each has a cause of its own, and a count would show the first.
            true => {
                let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
                recorder.publish(&event, object).await
            }
            false => self.recorder(&note.text).publish(&event, object).await,
        };
        if let Err(error) = sent {
            self.errors
                .get_or_create(&[("operation", "publish-event")])
                .inc();
            let name = object.name.as_deref().unwrap_or_default();
            warn!(
                "event {} about {name} ({}): {}",
                note.reason,
                note.text,
                Chain(&error)
            );
        }
    }

    /// Sends what the shims' news are worth, until there are none any more.
    pub async fn follow(&self, mut store: watch::Receiver<Store>) {
        let mut seen = BTreeMap::new();
        let mut revision = 0;
        loop {
            let news = {
                let store = store.borrow_and_update();
                let news = news(&mut seen, &store, revision);
                revision = store.revision();
                news
            };
            for (object, note) in news {
                self.publish(&object, &note).await;
            }
            if store.changed().await.is_err() {
                return;
            }
        }
    }
}

/// What is new in the store since a revision. Of a container that is seen the first time nothing is.
fn news(
    seen: &mut BTreeMap<String, Seen>,
    store: &Store,
    revision: u64,
) -> Vec<(ObjectReference, Note)> {
    let mut news = Vec::new();
    let changed = store.shims().filter(|(_, shim)| shim.revision > revision);
    let containers = changed.flat_map(|(_, shim)| &shim.containers);
    for container in containers.filter(|one| !one.pod_name.is_empty()) {
        let before = seen.insert(container.id.clone(), Seen::of(container));
        let notes = before.map(|before| notes(before, container));
        for note in notes.into_iter().flatten() {
            news.push((about_container(container), note));
        }
    }
    let known: std::collections::BTreeSet<&str> = store
        .shims()
        .flat_map(|(_, shim)| &shim.containers)
        .map(|one| one.id.as_str())
        .collect();
    seen.retain(|id, _| known.contains(id.as_str()));
    news
}

/// A container, as the kubelet refers to it.
fn about_container(container: &Container) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(container.pod_namespace.clone()),
        name: Some(container.pod_name.clone()),
        uid: Some(container.pod_uid.clone()),
        field_path: Some(format!("spec.containers{{{}}}", container.name)),
        ..ObjectReference::default()
    }
}

/// A pod.
pub fn about(pod: &Pod) -> ObjectReference {
    pod.object_ref(&())
}

#[cfg(test)]
mod tests {
    use podmotion_proto::shim::v1::Counters;

    use super::*;
    use crate::store::Report;

    fn told(sleeps: u64) -> Report {
        let container = Container {
            id: "web".into(),
            name: "web".into(),
            pod_name: "pod".into(),
            counters: Some(Counters {
                sleeps,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        Report::Told("a".into(), vec![container])
    }

    #[test]
    fn what_was_before_the_manager_came_is_not_told() {
        let (mut seen, mut store) = (BTreeMap::new(), Store::default());
        store.take_in(told(7));
        assert!(news(&mut seen, &store, 0).is_empty());
        let revision = store.revision();
        store.take_in(told(8));
        let news = news(&mut seen, &store, revision);
        assert_eq!(news.len(), 1);
        assert_eq!(
            news[0].0.field_path.as_deref(),
            Some("spec.containers{web}")
        );
    }

    #[test]
    fn a_silence_between_hides_nothing_and_what_is_gone_is_forgotten() {
        let (mut seen, mut store) = (BTreeMap::new(), Store::default());
        store.take_in(told(1));
        news(&mut seen, &store, 0);
        store.take_in(Report::Silent("a".into(), "no answer".into()));
        let revision = store.revision() - 1;
        assert!(news(&mut seen, &store, revision).is_empty());
        let revision = store.revision();
        store.take_in(told(2));
        assert_eq!(news(&mut seen, &store, revision).len(), 1);
        store.take_in(Report::Gone("a".into()));
        news(&mut seen, &store, 0);
        assert!(seen.is_empty());
    }
}
