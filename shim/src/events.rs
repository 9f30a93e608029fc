//! Task events to containerd, in the order in which they happened.

use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::context;
use log::warn;
use tokio::sync::{mpsc, oneshot};

use crate::timestamp;

/// Events that wait while containerd does not answer; more are dropped.
const QUEUE: usize = 2048;
/// Attempts for one event, with a pause that grows by a second each time.
const ATTEMPTS: u32 = 5;
/// How long containerd may take for one event.
const TIMEOUT: Duration = Duration::from_secs(5);

enum Item {
    Event(Envelope),
    Flush(oneshot::Sender<()>),
}

/// Sends events of one containerd namespace.
#[derive(Clone)]
pub struct Events {
    namespace: String,
    queue: mpsc::Sender<Item>,
}

impl Events {
    /// Starts the sending task. `address` is containerd's ttrpc socket; it need not be there yet.
    #[must_use]
    pub fn start(address: &str, namespace: &str) -> Self {
        let (queue, items) = mpsc::channel(QUEUE);
        let address = if address.contains("://") {
            address.to_owned()
        } else {
            format!("unix://{address}")
        };
        tokio::spawn(forward(address, items));
        Self {
            namespace: namespace.to_owned(),
            queue,
        }
    }

    /// Queues one event. `full_name` is the message's name with its package.
    pub fn send<M: Message>(&self, topic: &str, full_name: &str, event: &M) {
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => {
                warn!("encode event {topic}: {error}");
                return;
            }
        };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp::now()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(Any {
                type_url: full_name.to_owned(),
                value,
                ..Any::default()
            }),
            ..Envelope::default()
        };
        if self.queue.try_send(Item::Event(envelope)).is_err() {
            warn!("event {topic} dropped: {QUEUE} events already wait for containerd");
        }
    }

    /// Resolves when every event queued before has been sent or given up.
    pub async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.queue.send(Item::Flush(done)).await.is_ok() {
            // An error means that the task has ended: nothing is left to wait for.
            drop(flushed.await);
        }
    }
}

async fn forward(address: String, mut items: mpsc::Receiver<Item>) {
    let mut client = None;
    while let Some(item) = items.recv().await {
        match item {
            Item::Event(envelope) => deliver(&address, &mut client, envelope).await,
            Item::Flush(done) => drop(done.send(())),
        }
    }
}

/// Sends one event; the ones behind it wait, which is what keeps the order.
async fn deliver(address: &str, client: &mut Option<EventsClient>, envelope: Envelope) {
    let request = ForwardRequest {
        envelope: MessageField::some(envelope),
        ..ForwardRequest::default()
    };
    let mut attempt = 1;
    loop {
        let Err(error) = try_deliver(address, client, &request).await else {
            return;
        };
        *client = None;
        if attempt == ATTEMPTS {
            warn!("event {} given up: {error}", request.envelope.topic);
            return;
        }
        // A connection that broke while idle is simply made again.
        if attempt > 1 {
            tokio::time::sleep(Duration::from_secs(attempt.into())).await;
        }
        attempt += 1;
    }
}

async fn try_deliver(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> ttrpc::Result<()> {
    let connected = match client {
        Some(connected) => connected,
        None => client.insert(EventsClient::new(Client::connect(address).await?)),
    };
    connected
        .forward(context::with_duration(TIMEOUT), request)
        .await?;
    Ok(())
}
