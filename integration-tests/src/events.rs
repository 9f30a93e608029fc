//! The daemon's events about tasks, in the order they came.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use prost::Message;
use tokio::task::JoinHandle;

use crate::PATIENCE;
use crate::api::{Api, NAMESPACE, containers, events, rpc, runtime, task_events};

/// One event of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The containerd namespace it happened in.
    pub namespace: String,
    /// For example `/tasks/exit`.
    pub topic: String,
    /// The container.
    pub container: String,
    /// The process in it: an exec's id; the container's own or nothing for the first process.
    pub process: String,
    /// Host pid, where the event has one.
    pub pid: u32,
    /// Exit status, where the event has one.
    pub exit_status: u32,
}

#[derive(Debug, Default)]
struct Shared {
    events: Mutex<Vec<Event>>,
    arrived: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything since the daemon was started.
#[derive(Debug)]
pub struct EventLog {
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
}

impl EventLog {
    /// Returns once the subscription works: the daemon does not say so itself, so container records are
    /// made until one of them is heard of.
    pub(crate) fn subscribe(api: &Api) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let for_task = Arc::clone(&shared);
        let channel = api.channel();
        let reader = runtime().spawn(async move {
            let request = Api::request(
                NAMESPACE,
                events::SubscribeRequest {
                    filters: vec![r#"topic~="^/(tasks|containers)/""#.into()],
                },
            );
            let mut client = events::events_client::EventsClient::new(channel);
            let Ok(answer) = client.subscribe(request).await else {
                return;
            };
            let mut stream = answer.into_inner();
            // The stream fails when the daemon goes.
            while let Ok(Some(envelope)) = stream.message().await {
                let any = envelope.event.unwrap_or_default();
                let event = decode(envelope.namespace, envelope.topic, &any);
                for_task.lock().push(event);
                for_task.arrived.notify_all();
            }
        });
        let log = Self { shared, reader };
        for _ in 0..100 {
            probe(api)?;
            if log.wait(Duration::from_millis(50), |events| !events.is_empty()) {
                return Ok(log);
            }
        }
        bail!("no event arrives")
    }

    /// All events of one container so far.
    pub fn of(&self, container: &str) -> Vec<Event> {
        let events = self.shared.lock();
        events
            .iter()
            .filter(|event| event.container == container && event.topic.starts_with("/tasks/"))
            .cloned()
            .collect()
    }

    /// Waits for the first event of a container with this topic.
    pub fn wait_for(&self, container: &str, topic: &str) -> Result<Event> {
        self.wait_match(container, topic, |event| event.topic == topic)
    }

    /// Waits for the end of a container's first process; [`EventLog::wait_for`] takes an exec's end too.
    pub fn wait_for_exit(&self, container: &str) -> Result<Event> {
        self.wait_match(container, "/tasks/exit", |event| {
            event.topic == "/tasks/exit" && event.process == event.container
        })
    }

    fn wait_match(
        &self,
        container: &str,
        what: &str,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Event> {
        let matches = |event: &Event| event.container == container && wanted(event);
        self.wait(PATIENCE, |events| events.iter().any(matches));
        let events = self.shared.lock();
        events
            .iter()
            .find(|event| matches(event))
            .cloned()
            .ok_or_else(|| {
                let seen: Vec<_> = events.iter().filter(|e| e.container == container).collect();
                anyhow!("no {what} of {container} in {PATIENCE:?}; seen: {seen:?}")
            })
    }

    fn wait(&self, patience: Duration, done: impl Fn(&[Event]) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut events = self.shared.lock();
        while !done(&events) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            events = self
                .shared
                .arrived
                .wait_timeout(events, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn probe(api: &Api) -> Result<()> {
    type Client = containers::containers_client::ContainersClient<tonic::transport::Channel>;
    let id = "event-probe".to_owned();
    let container = containers::Container {
        id: id.clone(),
        runtime: Some(containers::container::Runtime {
            name: "none".into(),
            options: None,
        }),
        spec: Some(prost_types::Any::default()),
        ..Default::default()
    };
    rpc!(
        api,
        Client,
        create,
        containers::CreateContainerRequest {
            container: Some(container)
        }
    )
    .context("make a record to hear of")?;
    rpc!(
        api,
        Client,
        delete,
        containers::DeleteContainerRequest { id }
    )
    .context("delete it again")?;
    Ok(())
}

fn decode(namespace: String, topic: String, any: &prost_types::Any) -> Event {
    let bytes = any.value.as_slice();
    let (container, process, pid, exit_status) = match topic.as_str() {
        "/tasks/exit" => {
            let exit = task_events::TaskExit::decode(bytes).unwrap_or_default();
            (exit.container_id, exit.id, exit.pid, exit.exit_status)
        }
        "/tasks/delete" => {
            let delete = task_events::TaskDelete::decode(bytes).unwrap_or_default();
            (
                delete.container_id,
                delete.id,
                delete.pid,
                delete.exit_status,
            )
        }
        "/tasks/create" => {
            let create = task_events::TaskCreate::decode(bytes).unwrap_or_default();
            (create.container_id, String::new(), create.pid, 0)
        }
        "/tasks/start" => {
            let start = task_events::TaskStart::decode(bytes).unwrap_or_default();
            (start.container_id, String::new(), start.pid, 0)
        }
        "/tasks/exec-started" => {
            let exec = task_events::TaskExecStarted::decode(bytes).unwrap_or_default();
            (exec.container_id, exec.exec_id, exec.pid, 0)
        }
        "/tasks/exec-added" => {
            let exec = task_events::TaskExecAdded::decode(bytes).unwrap_or_default();
            (exec.container_id, exec.exec_id, 0, 0)
        }
        // Every other event has the container's id in its first field, and only that matters.
        _ => {
            let other = task_events::TaskOom::decode(bytes).unwrap_or_default();
            (other.container_id, String::new(), 0, 0)
        }
    };
    Event {
        namespace,
        topic,
        container,
        process,
        pid,
        exit_status,
    }
}
