//! The gate of a pod, shared by the drivers of its containers.
//!
//! The first container that may sleep opens the gate of its network namespace, the last one that
//! is deleted closes it. One task reads held packets off the tap while anybody in the pod sleeps
//! and tells the driver of the container that each one is for; another one sees to probes that are
//! led to the pod's responder (`crate::responder`).

mod seat;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io,
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use log::{debug, warn};
use podmotion_model::{chain::Chain, config::NodeConfig};
use tokio::{io::Interest, sync::mpsc, task::JoinHandle};

pub use self::seat::Seat;
use super::Notice;
use crate::gate::{
    ContainerKey, Ends, Flow, Gate, GateError, Limits, NodeRules, PortFlags, ProbeTimes, Released,
    Standstill,
    sockets::{Held, SocketError, Sockets, Wanted},
};
use crate::{responder, sys};

/// What keeps a container's packets from being seen.
#[derive(Debug, thiserror::Error)]
pub enum PodGateError {
    /// The container's network namespace could not be looked at.
    #[error("look at the network namespace {path}: {source}")]
    Namespace {
        /// Its link in `/proc`.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The container uses the node's network.
    #[error("the container uses the node's network")]
    HostNetwork,
    /// The gate failed.
    #[error(transparent)]
    Gate(#[from] GateError),
}

/// Device and inode of a namespace's file.
type NamespaceId = (u64, u64);

/// All gates of this shim: one in practice, as the containers of a pod share their network.
#[derive(Clone, Default)]
pub struct PodGates {
    open: Arc<Mutex<HashMap<NamespaceId, Weak<PodGate>>>>,
}

/// An open gate.
pub struct PodGate {
    gate: Mutex<Gate>,
    /// Of two containers that fall asleep one makes the tap.
    making_tap: Mutex<()>,
    places: Mutex<HashMap<ContainerKey, Place>>,
    reading: Mutex<Option<Reading>>,
    /// Sees to probes, where the kernel can lead them to it.
    responder: Mutex<Option<JoinHandle<()>>>,
}

/// A container, for what comes to the pod.
#[derive(Clone)]
pub struct Place {
    /// The way to its driver.
    pub driver: mpsc::UnboundedSender<Notice>,
    /// Health checks over gRPC are looked into.
    pub grpc: bool,
    ports: BTreeSet<u16>,
}

/// How the probes of a container are dealt with.
#[derive(Clone, Copy, Debug)]
pub struct Probing {
    /// They are use like everything else.
    pub count: bool,
    /// Health checks over gRPC are looked into.
    pub grpc: bool,
}

/// The task that reads a tap.
struct Reading {
    tap: Arc<OwnedFd>,
    task: JoinHandle<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Cookie of the network namespace of `pid`: the key of its entries in the gate's maps.
pub fn netns_cookie(pid: i32) -> Result<u64, PodGateError> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let netns = File::open(&path).map_err(|source| PodGateError::Namespace { path, source })?;
    Ok(podmotion_bpf::netns::cookie(netns.as_fd()).map_err(GateError::from)?)
}

/// What the configuration has for the gate's programs.
fn rules(config: &NodeConfig) -> NodeRules {
    let kubelets = config.probes.kubelets.0.iter();
    let networks = config.traffic.ignore_networks.0.iter();
    let agents = config.traffic.ignore_user_agents.0.iter();
    NodeRules {
        kubelets: kubelets.map(|name| name.0.clone()).collect(),
        ignored_networks: networks
            .map(|network| (network.address, network.prefix))
            .collect(),
        ignored_agents: agents.map(|agent| agent.0.clone()).collect(),
    }
}

/// Keys must differ between the shims of one network namespace too, so the pid is part of them. What is
/// left for a count comes round where a container starts again and again: keys in use are left out.
fn next_key(in_use: impl Fn(&ContainerKey) -> bool) -> ContainerKey {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        let key = ContainerKey(std::process::id().wrapping_shl(10) | (count & 0x3ff));
        if !in_use(&key) {
            return key;
        }
    }
}

impl PodGates {
    /// A seat at the gate of the network namespace of `pid`. Blocks for some milliseconds when the
    /// gate is opened. `driver` is told when a held packet wants the container, and asked about probes.
    /// Needs the runtime's context.
    pub fn seat(
        &self,
        pid: i32,
        config: &NodeConfig,
        probing: Probing,
        driver: mpsc::UnboundedSender<Notice>,
    ) -> Result<Seat, PodGateError> {
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let failed = |source| PodGateError::Namespace {
            path: path.clone(),
            source,
        };
        let netns = File::open(&path).map_err(failed)?;
        let found = netns.metadata().map_err(failed)?;
        let own = std::fs::metadata("/proc/self/ns/net").map_err(failed)?;
        let id = (found.dev(), found.ino());
        if id == (own.dev(), own.ino()) {
            return Err(PodGateError::HostNetwork);
        }
        let mut open = lock(&self.open);
        let pod = match open.get(&id).and_then(Weak::upgrade) {
            Some(pod) => pod,
            None => {
                let limits = Limits {
                    packets: config.gate.hold_packets as usize,
                    bytes: usize::try_from(config.gate.hold_bytes.0).unwrap_or(usize::MAX),
                };
                let gate = Gate::open(OwnedFd::from(netns), &config.gate.pins, limits)?;
                debug!("the gate of network namespace {} is open", gate.cookie());
                // After it, since its program is the last that the installer pins: a map that is not
                // there now is none that only has not come yet.
                let probes_are_told = match rules(config).tell(&config.gate.pins) {
                    // The gate does without.
                    Err(error @ GateError::NoProbes(_)) => {
                        warn!("{}", Chain(&error));
                        false
                    }
                    told => told.map(|()| true)?,
                };
                let pod = Arc::new(PodGate {
                    gate: Mutex::new(gate),
                    making_tap: Mutex::default(),
                    places: Mutex::default(),
                    reading: Mutex::default(),
                    responder: Mutex::default(),
                });
                if probes_are_told && let Err(error) = pod.respond() {
                    warn!(
                        "probes count as use, nobody can answer them: {}",
                        Chain(&error)
                    );
                }
                open.retain(|_, gate| gate.strong_count() > 0);
                open.insert(id, Arc::downgrade(&pod));
                pod
            }
        };
        let place = Place {
            driver,
            grpc: probing.grpc,
            ports: BTreeSet::new(),
        };
        let mut places = lock(&pod.places);
        let key = next_key(|key| places.contains_key(key));
        places.insert(key, place);
        drop(places);
        let count_probes = probing.count || lock(&pod.responder).is_none();
        Ok(Seat {
            pod,
            key,
            count_probes,
            steering: Mutex::default(),
        })
    }
}

impl PodGate {
    /// Has a responder from now on.
    fn respond(self: &Arc<Self>) -> Result<(), GateError> {
        let failed = |source| GateError::Responder { source };
        let listener = {
            let mut gate = lock(&self.gate);
            let listener = responder::socket_in(gate.netns()).map_err(failed)?;
            gate.start_steering(listener.as_fd())?;
            listener
        };
        let task = responder::serve(listener, Arc::downgrade(self)).map_err(failed)?;
        *lock(&self.responder) = Some(task);
        Ok(())
    }

    /// Has a tap that frames can be held in.
    fn have_tap(&self) -> Result<(), GateError> {
        let _one = lock(&self.making_tap);
        let place = {
            let gate = lock(&self.gate);
            if gate.has_tap() {
                return Ok(());
            }
            gate.tap_place()?
        };
        // Not with the gate's lock held, and before probes are led elsewhere: it can take seconds.
        let tap = place.make()?;
        let before = lock(&self.gate).set_tap(tap);
        if before.is_some() {
            warn!("the pod's tap was taken down or removed: the gate has a new one");
        }
        Ok(())
    }

    /// Has the drivers of these containers wake them. One that has ended needs no wake.
    fn wake(&self, wanted: impl IntoIterator<Item = ContainerKey>) {
        let places = lock(&self.places);
        for place in wanted.into_iter().filter_map(|key| places.get(&key)) {
            drop(place.driver.send(Notice::Wanted));
        }
    }

    /// The container that has `port`.
    pub fn place(&self, port: u16) -> Option<Place> {
        let places = lock(&self.places);
        let mut places = places.values();
        places.find(|place| place.ports.contains(&port)).cloned()
    }

    /// A socket in the pod that is about to be connected to `server`, in the pod too, and counts as a
    /// probe's. Blocks for some microseconds.
    pub fn bind_probe(&self, server: SocketAddr) -> io::Result<TcpStream> {
        let mut gate = lock(&self.gate);
        let (socket, client) = responder::bind_beside(gate.netns(), server)?;
        gate.note_own_probe(client, server)
            .map_err(io::Error::other)?;
        Ok(socket)
    }
}

impl Drop for PodGate {
    fn drop(&mut self) {
        if let Some(reading) = lock(&self.reading).take() {
            reading.task.abort();
        }
        if let Some(responder) = lock(&self.responder).take() {
            responder.abort();
        }
    }
}

/// The task's rest for each frame that nobody is held for: ten times what one takes it. A few come at the end of a hold; a
/// container that may open packet sockets can write as many into the tap as it likes.
const REST_PER_STRAY: Duration = Duration::from_micros(40);

/// Reads held packets for as long as there is the tap.
async fn read_tap(pod: Weak<PodGate>, tap: Arc<OwnedFd>) {
    let tap = match sys::shared_event_source(tap, Interest::READABLE) {
        Ok(tap) => tap,
        Err(error) => return warn!("watch the tap: {error}"),
    };
    loop {
        let mut ready = match tap.readable().await {
            Ok(ready) => ready,
            Err(error) => return warn!("watch the tap: {error}"),
        };
        let Some(pod) = pod.upgrade() else { return };
        ready.clear_ready();
        let (wanted, strays) = {
            let mut gate = lock(&pod.gate);
            (gate.read_held(), gate.take_strays())
        };
        match wanted {
            Ok(wanted) => pod.wake(wanted),
            Err(error) => {
                warn!("read held packets: {error}");
                // Nobody would learn that one of them is wanted.
                let all: Vec<_> = lock(&pod.places).keys().copied().collect();
                return pod.wake(all);
            }
        }
        // The gate can be closed meanwhile.
        drop(pod);
        if strays > 0 {
            tokio::time::sleep(REST_PER_STRAY * strays).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_use_is_given_to_nobody_else() {
        let used = next_key(|_| false);
        for _ in 0..2048 {
            assert_ne!(next_key(|key| *key == used), used);
        }
    }
}
