//! What the cluster is shown: labels, a condition and events of pods, requests that are lowered while a
//! container sleeps, and the node's taint.
//!
//! ```text
//!   API server --pods of the node, trimmed--> reconcile <--wakes-- Store
//!                                                |
//!                       step (pure) decides, edge does it, until nothing is left
//! ```
//!
//! Nothing of it is needed for a sleep or a wake.

mod edge;
mod events;
mod leave;
mod notes;
mod pods;
mod reconcile;
mod requests;
mod status;
mod step;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::WatchParams;
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::watcher::Event;
use kube::runtime::{Controller, WatchStreamExt, controller};
use kube::{Api, Client, Config, ResourceExt};
use podmotion_model::chain::Chain;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::args::Args;
use crate::health::Cluster as Health;
use crate::metrics::ApiErrors;
use crate::node::{NOT_READY, SelfTest, remove_taint};
use crate::store::Store;
use events::Events;
pub use leave::leave;
use reconcile::{Context, failed, reconcile};
pub use step::Wishes;

/// Whose fields these are.
pub const FIELD_MANAGER: &str = "podmotion-manager";

/// Pods that are changed at the same time.
const CONCURRENCY: u16 = 4;

/// Between two tries to remove the taint.
const TAINT: Duration = Duration::from_secs(5);

/// A request that nothing is heard of for so long has failed: more than a watch takes to end without news.
const SILENT: Duration = Duration::from_secs(295);

/// Between two questions to an API server that has failed, and how long it has for an answer.
const AGAIN: Duration = Duration::from_secs(5);

/// Nothing says where the API server is.
#[derive(Debug, thiserror::Error)]
#[error("find the API server (--no-kubernetes does without): {}", Chain(.0))]
pub struct ConnectError(#[source] kube::Error);

/// The way to the API server; `None` where nobody is to talk to it.
///
/// # Errors
/// When nothing says where it is.
pub async fn client(args: &Args) -> Result<Option<Client>, ConnectError> {
    if args.no_kubernetes {
        return Ok(None);
    }
    let config = Config::infer().await.map_err(kube::Error::InferConfig);
    let mut config = config.map_err(ConnectError)?;
    config.read_timeout = Some(SILENT);
    config.reset_reader_on_write = true;
    Client::try_from(config).map(Some).map_err(ConnectError)
}

/// What is to be shown, and of what.
pub struct Show {
    /// The API server.
    pub client: Client,
    /// The node's name.
    pub node: String,
    /// Pods of this class.
    pub runtime_class: String,
    /// What pods show.
    pub wishes: Wishes,
    /// Whether there are events.
    pub events: bool,
    /// What the shims tell.
    pub store: watch::Receiver<Store>,
    /// The node's self-test.
    pub self_test: watch::Receiver<Option<SelfTest>>,
    /// Counts failures.
    pub errors: ApiErrors,
    /// Told whether the API server answers.
    pub health: watch::Sender<Health>,
}

impl Show {
    /// Shows it for as long as the store lives.
    pub async fn run(self) {
        let events = self.events.then(|| {
            let events = Events::new(self.client.clone(), &self.node, self.errors.clone());
            Arc::new(events)
        });
        if let Some(events) = &events {
            let (events, store) = (Arc::clone(events), self.store.clone());
            tokio::spawn(async move { events.follow(store).await });
        }
        tokio::spawn(keep_taint_off(
            self.client.clone(),
            self.node.clone(),
            self.self_test.clone(),
            self.errors.clone(),
        ));
        tokio::spawn(ask_again(
            self.client.clone(),
            self.node.clone(),
            self.health.clone(),
        ));
        let context = Arc::new(Context {
            client: self.client.clone(),
            store: self.store.clone(),
            wishes: self.wishes,
            events,
            errors: self.errors.clone(),
            memory: Default::default(),
        });
        let (reader, writer) = reflector::store::<Pod>();
        let health = self.health;
        let known = (reader.clone(), Arc::clone(&context));
        let pods = pods::follow(self.client, &self.node, self.runtime_class);
        let pods = reflector::reflector(writer, pods).inspect(move |event| {
            let (reader, context) = &known;
            match event {
                Ok(Event::Init | Event::InitApply(_)) => {}
                Ok(event) => {
                    health.send_if_modified(Health::answered);
                    if let Event::Delete(_) | Event::InitDone = event {
                        let all = reader.state();
                        let uids: BTreeSet<_> = all.iter().filter_map(|pod| pod.uid()).collect();
                        context.keep(|uid| uids.contains(uid));
                    }
                }
                Err(error) => {
                    let error = format!("watch the node's pods: {}", Chain(error));
                    if health.send_if_modified(|health| health.failed(&error)) {
                        warn!("{error}");
                    }
                }
            }
        });
        let config = controller::Config::default().concurrency(CONCURRENCY);
        Controller::for_stream(pods.applied_objects(), reader)
            .with_config(config)
            .reconcile_on(changed_pods(self.store))
            .run(reconcile, failed, context)
            // What fails has been told by `failed`.
            .for_each(|_| std::future::ready(()))
            .await;
    }
}

/// Pods of which a shim has news.
fn changed_pods(store: watch::Receiver<Store>) -> impl Stream<Item = ObjectRef<Pod>> + Send {
    let news = stream::unfold((store, 0), |(mut store, revision)| async move {
        if revision != 0 {
            store.changed().await.ok()?;
        }
        let (pods, now) = {
            let store = store.borrow_and_update();
            (pods_since(&store, revision), store.revision())
        };
        Some((stream::iter(pods), (store, now.max(1))))
    });
    news.flatten()
}

fn pods_since(store: &Store, revision: u64) -> Vec<ObjectRef<Pod>> {
    let changed = store.shims().filter(|(_, shim)| shim.revision > revision);
    let names: BTreeSet<(&str, &str)> = changed
        .flat_map(|(_, shim)| &shim.containers)
        .filter(|one| !one.pod_name.is_empty())
        .map(|one| (one.pod_namespace.as_str(), one.pod_name.as_str()))
        .collect();
    let to_ref = |(namespace, name): (&str, &str)| ObjectRef::new(name).within(namespace);
    names.into_iter().map(to_ref).collect()
}

/// A watch that goes on after a failure tells nothing until a pod changes, which may take days: whether one can
/// be begun is asked until it can.
async fn ask_again(client: Client, node: String, health: watch::Sender<Health>) {
    let pods: Api<Pod> = Api::all(client);
    let params = WatchParams::default().fields(&format!("spec.nodeName={node}"));
    let mut told = health.subscribe();
    while told.wait_for(Health::is_failing).await.is_ok() {
        sleep(AGAIN).await;
        if let Ok(Ok(_begun)) = timeout(AGAIN, pods.watch(&params, "0")).await {
            health.send_if_modified(Health::answered);
        }
    }
}

/// Removes the node's taint whenever its self-test holds.
async fn keep_taint_off(
    client: Client,
    node: String,
    mut self_test: watch::Receiver<Option<SelfTest>>,
    errors: ApiErrors,
) {
    let holds = |result: &Option<SelfTest>| result.as_ref().is_some_and(|result| result.holds);
    while self_test.wait_for(holds).await.is_ok() {
        match remove_taint(&client, &node).await {
            Ok(removed) => {
                if removed {
                    info!(
                        "node {node}: the self-test has passed, the taint {NOT_READY} is removed"
                    );
                }
                if self_test.changed().await.is_err() {
                    return;
                }
            }
            Err(error) => {
                errors.get_or_create(&[("operation", "remove-taint")]).inc();
                let why = Chain(&error).to_string();
                warn!("node {node}: remove the taint {NOT_READY}: {why}");
                sleep(TAINT).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use podmotion_proto::shim::v1::Container;

    use super::*;
    use crate::store::Report;

    fn told(group: &str, pod: &str, state: &str) -> Report {
        let container = Container {
            id: format!("web-{group}"),
            pod_name: pod.into(),
            pod_namespace: "shop".into(),
            state: state.into(),
            ..Default::default()
        };
        Report::Told(group.into(), vec![container])
    }

    #[test]
    fn only_pods_with_news_are_looked_at() {
        let mut store = Store::default();
        store.take_in(told("a", "one", "running"));
        store.take_in(told("b", "two", "running"));
        store.take_in(told("c", "", "running"));
        assert_eq!(pods_since(&store, 0).len(), 2);
        let revision = store.revision();
        store.take_in(told("b", "two", "asleep"));
        let pods = pods_since(&store, revision);
        assert_eq!(pods, [ObjectRef::new("two").within("shop")]);
    }
}
