//! Has each pod show what its containers do: one step after the other until nothing is left to do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::controller::Action;
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tracing::{info, warn};

use super::edge::{self, EdgeError};
use super::events::{Events, about};
use super::notes::Note;
use super::requests::{OriginalsError, left_alone};
use super::step::{Step, Wishes, next};
use crate::metrics::ApiErrors;
use crate::store::Store;

/// More steps than any pod needs at once.
const STEPS: usize = 8;

/// After a conflict: somebody else has changed the pod, and the news of it are on their way.
const CONFLICT: Duration = Duration::from_millis(200);

/// Between two tries after a failure, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A pod could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// Its annotation cannot be read.
    #[error(transparent)]
    Originals(#[from] OriginalsError),
    /// The API server does not do it.
    #[error(transparent)]
    Edge(#[from] EdgeError),
}

/// What reconciling needs.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What the shims tell.
    pub store: watch::Receiver<Store>,
    /// What is wanted.
    pub wishes: Wishes,
    /// Where events go; nowhere without the flag.
    pub events: Option<Arc<Events>>,
    /// Counts failures.
    pub errors: ApiErrors,
    /// What is remembered of pods, by uid.
    pub memory: Mutex<HashMap<String, Memory>>,
}

/// What is remembered of a pod.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Its requests are not lowered, and that was said.
    left_alone: bool,
    /// Tries that failed in a row.
    failures: u32,
    /// What the last failure was, said once.
    failure: Option<String>,
}

impl Context {
    fn remember<T>(&self, uid: &str, change: impl FnOnce(&mut Memory) -> T) -> T {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        change(memory.entry(uid.to_owned()).or_default())
    }

    /// Forgets pods that are gone.
    pub fn keep(&self, is: impl Fn(&str) -> bool) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.retain(|uid, _| is(uid));
    }

    async fn say(&self, pod: &Pod, note: &Note) {
        if let Some(events) = &self.events {
            events.publish(&about(pod), note).await;
        }
    }
}

/// Does what there is to do for `pod`.
///
/// # Errors
/// When the API server refuses, or something in the pod cannot be read.
pub async fn reconcile(pod: Arc<Pod>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let Some(uid) = pod.uid() else {
        return Ok(Action::await_change());
    };
    let mut pod = (*pod).clone();
    for _ in 0..STEPS {
        let mut wishes = context.wishes;
        wishes.lower &= !context.remember(&uid, |memory| memory.left_alone);
        let step = {
            let store = context.store.borrow();
            next(&pod, &store.pod(&uid), wishes)?
        };
        let Some(step) = step else { break };
        if let Step::Lower(_) | Step::Restore(_) = step {
            info!(
                "{}/{}: {step:?}",
                pod.namespace().unwrap_or_default(),
                pod.name_any()
            );
        }
        pod = match edge::perform(&context.client, &pod, &step).await {
            Ok(pod) => pod,
            Err(error) if error.is_conflict() => return Ok(Action::requeue(CONFLICT)),
            Err(error) if error.is_refusal() && matches!(step, Step::Lower(_)) => {
                leave_alone(&context, &pod, &uid, &error.to_string()).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
    }
    let asleep = context
        .store
        .borrow()
        .pod(&uid)
        .iter()
        .any(|one| one.state == "asleep");
    if let (true, true, Some(why)) = (context.wishes.lower, asleep, left_alone(&pod)) {
        leave_alone(&context, &pod, &uid, why).await;
    }
    context.remember(&uid, |memory| {
        memory.failures = 0;
        memory.failure = None;
    });
    Ok(Action::await_change())
}

/// Says once that the pod's requests are not lowered, and lets it be.
async fn leave_alone(context: &Context, pod: &Pod, uid: &str, why: &str) {
    let said = context.remember(uid, |memory| {
        std::mem::replace(&mut memory.left_alone, true)
    });
    if said {
        return;
    }
    let text = format!("Requests stay as they are while it sleeps: {why}");
    info!(
        "{}/{}: {text}",
        pod.namespace().unwrap_or_default(),
        pod.name_any()
    );
    let note = Note {
        warning: false,
        reason: "RequestsKept",
        action: "LowerRequests",
        text,
    };
    context.say(pod, &note).await;
}

/// When to try again. A failure is logged, and once told in an event.
pub fn failed(pod: Arc<Pod>, error: &ReconcileError, context: Arc<Context>) -> Action {
    let what = match error {
        ReconcileError::Originals(_) => "read-originals",
        ReconcileError::Edge(error) => error.operation,
    };
    context.errors.get_or_create(&[("operation", what)]).inc();
    let text = error.to_string();
    let uid = pod.uid().unwrap_or_default();
    let (failures, new) = context.remember(&uid, |memory| {
        memory.failures += 1;
        let new = memory.failure.as_ref() != Some(&text);
        memory.failure = Some(text.clone());
        (memory.failures, new)
    });
    if new {
        warn!(
            "{}/{}: {text}",
            pod.namespace().unwrap_or_default(),
            pod.name_any()
        );
        let note = Note {
            warning: true,
            reason: "StatusFailed",
            action: "Show",
            text,
        };
        // The policy cannot wait; whoever gets the event does.
        tokio::spawn(async move { context.say(&pod, &note).await });
    }
    let wait = RETRY.0 * 2_u32.pow(failures.saturating_sub(1).min(5));
    Action::requeue(wait.min(RETRY.1))
}
