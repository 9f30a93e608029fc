//! `podmotion.shim.v1`: what this shim's containers do, for `podmotion ps` and the node's manager,
//! and sleep or wake on request. Only root can connect.

mod tallies;

use std::{
    fs, io,
    os::unix::{fs::DirBuilderExt, fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::ttrpc::{
    self, Code,
    r#async::{Server, TtrpcContext, transport::Listener},
};
use log::warn;
use podmotion_model::idle::Deepened;
use podmotion_model::lifecycle::{Depth, State};
use podmotion_pager::FillStats;
use podmotion_proto::shim::v1 as proto;
use tokio::sync::oneshot;

use crate::sleep::{
    Node, Notice, Refusal,
    status::{Handle, LastProbe, Rehearsal, Status},
};

/// How long a `Watch` waits that does not say.
const WATCH: Duration = Duration::from_secs(30);

/// The service could not be offered.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The socket could not be made.
    #[error("{operation} {}: {source}", path.display())]
    Socket {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The server did not start.
    #[error("serve {}: {source}", path.display())]
    Server {
        /// The socket.
        path: PathBuf,
        /// The library's answer.
        #[source]
        source: ttrpc::Error,
    },
}

/// The running service; its socket goes with it.
pub struct Api {
    server: Server,
    path: PathBuf,
    /// The socket is in its folder.
    listed: bool,
}

impl Api {
    /// Offers the service of the shim of `group` (the sandbox's id, or the only container's).
    pub async fn start(node: Arc<Node>, group: &str) -> Result<Self, ApiError> {
        let folder = &node.config.shim.sockets;
        let path = folder.join(format!("{group}.sock"));
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| ApiError::Socket {
                operation,
                path,
                source,
            }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed("create", folder))?;
        // A shim of the same sandbox that was killed left it.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &path)(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed("listen on", &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
            .map_err(failed("restrict", &path))?;
        listener
            .set_nonblocking(true)
            .map_err(failed("listen on", &path))?;
        let listener = Listener::try_from(listener).map_err(failed("listen on", &path))?;
        let service = proto::create_shim(Arc::new(Service { node }));
        let mut server = Server::new()
            .add_listener(listener)
            .register_service(service);
        server.start().await.map_err(|source| ApiError::Server {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            server,
            path,
            listed: true,
        })
    }

    /// Ends the service.
    pub async fn stop(mut self) {
        // First: who finds the socket and is not listened to takes the shim for one that is dead.
        self.remove();
        if let Err(error) = self.server.shutdown().await {
            warn!("stop the service on {}: {error}", self.path.display());
        }
    }

    /// Once: the next one of that name is another shim's.
    fn remove(&mut self) {
        if !std::mem::take(&mut self.listed) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            warn!("remove {}: {error}", self.path.display());
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.remove();
    }
}

struct Service {
    node: Arc<Node>,
}

impl Service {
    fn handle(&self, id: &str) -> ttrpc::Result<Handle> {
        self.node.registry.get(id).ok_or_else(|| {
            refuse(
                Code::NOT_FOUND,
                format!("no container {id:.100} in this shim"),
            )
        })
    }

    fn list(&self) -> proto::ListResponse {
        // The revision first: a change between the two is answered once more, not missed.
        let revision = *self.node.registry.revision().borrow();
        let containers = self.node.registry.all().iter().map(describe).collect();
        proto::ListResponse {
            revision,
            containers,
            ..Default::default()
        }
    }

    async fn ask(
        &self,
        id: &str,
        notice: impl FnOnce(oneshot::Sender<Result<(), Refusal>>) -> Notice,
    ) -> ttrpc::Result<()> {
        let (asker, answer) = oneshot::channel();
        let ended = || refuse(Code::NOT_FOUND, format!("container {id} has ended"));
        self.handle(id)?
            .driver
            .send(notice(asker))
            .map_err(|_| ended())?;
        let answer = answer.await.map_err(|_| ended())?;
        answer.map_err(|refusal| refuse(Code::FAILED_PRECONDITION, refusal.to_string()))
    }
}

fn refuse(code: Code, message: String) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}

#[async_trait]
impl proto::Shim for Service {
    async fn list(
        &self,
        _: &TtrpcContext,
        _: proto::ListRequest,
    ) -> ttrpc::Result<proto::ListResponse> {
        Ok(Self::list(self))
    }

    async fn watch(
        &self,
        _: &TtrpcContext,
        request: proto::WatchRequest,
    ) -> ttrpc::Result<proto::ListResponse> {
        let limit = match request.timeout_ms {
            0 => WATCH,
            given => Duration::from_millis(given),
        };
        let mut revision = self.node.registry.revision();
        let newer = revision.wait_for(|revision| *revision > request.revision);
        // After the limit the answer is the same as before.
        drop(tokio::time::timeout(limit, newer).await);
        Ok(Self::list(self))
    }

    async fn inspect(
        &self,
        _: &TtrpcContext,
        request: proto::InspectRequest,
    ) -> ttrpc::Result<proto::InspectResponse> {
        let container = MessageField::some(describe(&self.handle(&request.id)?));
        Ok(proto::InspectResponse {
            container,
            ..Default::default()
        })
    }

    async fn sleep(
        &self,
        _: &TtrpcContext,
        request: proto::SleepRequest,
    ) -> ttrpc::Result<proto::SleepResponse> {
        self.ask(&request.id, Notice::AskedToSleep).await?;
        Ok(proto::SleepResponse::default())
    }

    async fn wake(
        &self,
        _: &TtrpcContext,
        request: proto::WakeRequest,
    ) -> ttrpc::Result<proto::WakeResponse> {
        let stay = request.stay;
        self.ask(&request.id, |asker| Notice::AskedToWake { asker, stay })
            .await?;
        Ok(proto::WakeResponse::default())
    }
}

fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn fill(stats: &FillStats) -> proto::Fill {
    proto::Fill {
        prefetch_bytes: stats.prefetch_bytes,
        faults: stats.faults + stats.zero_faults,
        background_bytes: stats.background_bytes,
        took_us: micros(stats.background_time),
        faults_us: micros(stats.fault_time),
        ..Default::default()
    }
}

fn last_probe((port, last): (u16, LastProbe)) -> proto::LastProbe {
    proto::LastProbe {
        port: port.into(),
        at_unix_ms: unix_ms(last.at),
        kind: last.kind.to_owned(),
        subject: last.subject,
        passed: last.passed,
        said: last.said,
        ..Default::default()
    }
}

fn rehearsed(Rehearsal { at, result }: Rehearsal) -> proto::Rehearsal {
    let at_unix_ms = unix_ms(at);
    match result {
        Ok((written, took)) => proto::Rehearsal {
            at_unix_ms,
            took_us: micros(took),
            memory_bytes: written.memory_bytes,
            image_bytes: written.image_bytes,
            ..Default::default()
        },
        Err(error) => proto::Rehearsal {
            at_unix_ms,
            error,
            ..Default::default()
        },
    }
}

fn describe(handle: &Handle) -> proto::Container {
    let identity = (*handle.identity).clone();
    let Status {
        state,
        since,
        awake,
        memory_wait,
        awake_since,
        ports,
        last_sleep,
        compression,
        last_wake,
        rehearsal,
        counters,
        tallies,
        packets,
        probes,
        last_error,
    } = handle.status.borrow().clone();
    let sleeping = state.depth().is_some() || matches!(state, State::Waking { .. });
    let freed = last_sleep.filter(|_| sleeping);
    proto::Container {
        id: identity.id,
        namespace: identity.namespace,
        name: identity.name,
        pod_name: identity.pod_name,
        pod_namespace: identity.pod_namespace,
        pod_uid: identity.pod_uid,
        image: identity.image,
        state: state.as_str().to_owned(),
        depth: state.depth().map_or("", Depth::as_str).to_owned(),
        since_unix_ms: unix_ms(since),
        awake_reason: awake
            .map(|reason| proto::AwakeReason {
                name: reason.as_str().to_owned(),
                detail: reason.to_string(),
                since_unix_ms: unix_ms(awake_since),
                ..Default::default()
            })
            .into(),
        memory_wait: memory_wait
            .map(|wait| proto::MemoryWait {
                since_unix_ms: unix_ms(wait.since),
                detail: wait.what.to_string(),
                ..Default::default()
            })
            .into(),
        ports: ports.into_iter().map(u32::from).collect(),
        last_sleep: last_sleep
            .map(|last| proto::LastSleep {
                at_unix_ms: unix_ms(last.at),
                depth: last.depth.as_str().to_owned(),
                deepened: last.deepened.map_or("", Deepened::as_str).to_owned(),
                took_us: micros(last.took),
                frozen_us: micros(last.frozen),
                memory_bytes: last.memory_bytes,
                image_bytes: last.image_bytes,
                working_set_bytes: last.working_set_bytes,
                left_bytes: last.left_bytes,
                unread_bytes: last.unread_bytes,
                compression,
                ..Default::default()
            })
            .into(),
        last_wake: last_wake
            .map(|last| proto::LastWake {
                at_unix_ms: unix_ms(last.at),
                depth: last.depth.as_str().to_owned(),
                prefetch_us: micros(last.prefetch),
                thaw_us: micros(last.thaw),
                memory_wait_us: micros(last.memory_wait),
                fill: last.fill.as_deref().map(fill).into(),
                cause: last.cause.as_str().to_owned(),
                took_us: micros(last.took),
                first_packet_held_us: last.first_packet_held.map_or(0, micros),
                packets: last.packets,
                lazy: last.lazy,
                ..Default::default()
            })
            .into(),
        rehearsal: rehearsal.map(rehearsed).into(),
        counters: MessageField::some(proto::Counters {
            sleeps: counters.sleeps,
            sleeps_aborted: counters.sleeps_aborted,
            sleeps_failed: counters.sleeps_failed,
            wakes: counters.wakes,
            wakes_failed: counters.wakes_failed,
            cold_starts: counters.cold_starts,
            ..Default::default()
        }),
        tallies: MessageField::some(tallies::tallies(&tallies)),
        packets: MessageField::some(proto::Packets {
            held: packets.held,
            dropped: packets.dropped,
            answered: packets.answered,
            returned: packets.returned,
            ..Default::default()
        }),
        probes: MessageField::some(proto::Probes {
            answered: probes.answered,
            proxied: probes.proxied,
            last: probes.last.into_iter().map(last_probe).collect(),
            ..Default::default()
        }),
        last_error: last_error.unwrap_or_default(),
        memory_freed_bytes: freed.map_or(0, |last| last.memory_bytes),
        image_bytes: freed.map_or(0, |last| last.image_bytes),
        ..Default::default()
    }
}
