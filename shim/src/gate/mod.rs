//! The gate: what keeps a sleeping container's clients waiting instead of refused.
//!
//! ```text
//!             gate_ingress (BPF)                     Gate
//!   eth0, lo ──┬── awake: notes the time ──────────> last_activity
//!              │
//!              └── held: redirected ──> tap ───────> read_held ──> queue
//!                                                                    │
//!   eth0, lo <──── tap_ingress (BPF) <──────── tap <──── release ────┘
//! ```
//!
//! One [`Gate`] per pod, as the containers of a pod share its network namespace; containers are told
//! apart by a [`ContainerKey`]. The tap is made for the first hold and stays, up, until the gate is closed; while nobody
//! is held the programs do not know it. Taking it down and up again would wait for the kernel's network lock (`rtnl`),
//! which the whole node shares: then a sleep or a wake, and every probe behind it, takes as long as somebody holds that.
//!
//! Invariants:
//! - User space opens: a packet that a program takes is in the tap, in the queue, or written back.
//!   No order of `hold`, `read_held` and `release` loses one, short of the queue's limits.
//! - What the programs are told changes before the books here when a hold ends, and after them when
//!   it begins, so a frame that the programs take always has a container here.
//! - Every map entry has this namespace's cookie in its key and is removed with the `Gate`.
//!
//! All functions block, for microseconds unless they say more; none of them waits for a peer. Opening and closing a gate
//! and making a tap wait for the network lock, nothing else does.

mod error;
mod frame;
mod hold;
mod node;
mod probes;
mod queue;
pub mod sockets;
mod sys;
mod tap;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::net::if_::if_nametoindex;
pub use podmotion_bpf::Counters;
pub use podmotion_bpf::PortFlags;
use podmotion_bpf::{
    GATE_PROGRAM, Link, Maps, Method, Mode, NetnsValue, PortKey, PortValue, Protocol, attach,
    detach_left_over, is_attached, netns,
};

pub use error::GateError;
pub use node::NodeRules;
pub use probes::ProbeTimes;
pub use queue::Limits;
pub use sockets::Flow;

use probes::Steering;
use queue::Queue;
use tap::Tap;

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// Ports of a container at most: the node's pods share one map, and no pod is to fill it.
const MOST_PORTS: usize = 1024;
/// Connections of a pod's sleeping containers at most, for the same reason: a sixteenth of what the map can have.
const MOST_CONNECTIONS: usize = 8192;

/// A container of the pod, by a number that its shim gives it and does not give twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerKey(pub u32);

/// What a hold held until it was released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Released {
    /// Frames written back.
    pub frames: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Frames that the queue had no room for or the kernel did not take back. Their senders
    /// transmit them again, except for UDP.
    pub lost: u64,
    /// How long the first of them had waited; `None` if none had.
    pub held_for: Option<Duration>,
    /// What the programs have counted in the pod until now.
    pub packets: Counters,
}

/// Where the end of a connection in the pod stands while it sleeps, all acknowledged and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standstill {
    /// Sequence number of the next byte that it waits for.
    pub rcv_nxt: u32,
    /// Sequence number of the next byte that it would send.
    pub snd_nxt: u32,
    /// Its window as it is announced, scaled.
    pub window: u16,
}

/// What is with the pod's ends of held connections while their container sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Their sockets are there: the kernel acknowledges and answers keepalives.
    Alive,
    /// There are none: what asks for nothing is dropped, or answered in their place.
    Gone,
}

#[derive(Default)]
struct Container {
    ports: BTreeSet<u16>,
    /// Ports of which only the probes are looked after.
    probed: BTreeSet<u16>,
    /// The programs are told to take its packets.
    holding: bool,
    /// Those that they have taken are kept: from before `holding` begins until after it ends.
    held: bool,
    flows: BTreeSet<Flow>,
}

/// The gate of one pod. See the [module](self).
pub struct Gate {
    pins: PathBuf,
    netns: OwnedFd,
    cookie: u64,
    inquiry: sockets::Inquiry,
    maps: Maps,
    links: Vec<Link>,
    eth_ifindex: u32,
    containers: BTreeMap<ContainerKey, Container>,
    by_port: HashMap<u16, ContainerKey>,
    by_probed_port: HashMap<u16, ContainerKey>,
    by_flow: HashMap<Flow, ContainerKey>,
    flags: HashMap<u16, PortFlags>,
    steering: Option<Steering>,
    tap: Option<Tap>,
    queue: Queue,
    /// They have frames in the queue, and their drivers do not know.
    wanted: BTreeSet<ContainerKey>,
    /// Frames for nobody.
    strays: u32,
    registered: bool,
}

impl Gate {
    /// Registers the network namespace `netns` with the programs pinned in `pins` and attaches them
    /// to its `lo` and, if it has one, `eth0`. Held frames of all containers together keep within
    /// `limits`. Takes a few milliseconds.
    ///
    /// # Errors
    ///
    /// [`GateError::InUse`] if another process has this namespace's gate; map and attach errors if
    /// the programs are not pinned. Nothing is left behind.
    pub fn open(netns: OwnedFd, pins: &Path, limits: Limits) -> Result<Self, GateError> {
        Self::open_with(netns, pins, limits, None)
    }

    /// [`open`](Self::open), attached as told instead of the best way that the kernel has.
    pub fn open_with(
        netns: OwnedFd,
        pins: &Path,
        limits: Limits,
        method: Option<Method>,
    ) -> Result<Self, GateError> {
        let cookie = netns::cookie(netns.as_fd())?;
        let mut maps = Maps::open(pins)?;
        let eth_ifindex = netns::enter(netns.as_fd(), || if_nametoindex("eth0").unwrap_or(0))?;
        if maps.netns.get(&cookie)?.is_some() {
            if is_attached(netns.as_fd(), "lo", GATE_PROGRAM)? {
                return Err(GateError::InUse);
            }
            // Left by a shim that was killed.
            maps.purge(cookie)?;
            detach_left_over(netns.as_fd(), "lo", GATE_PROGRAM)?;
            if eth_ifindex != 0 {
                detach_left_over(netns.as_fd(), "eth0", GATE_PROGRAM)?;
            }
        }
        let mut gate = Self {
            pins: pins.into(),
            netns,
            cookie,
            inquiry: sockets::Inquiry::new(cookie),
            maps,
            links: Vec::new(),
            eth_ifindex,
            containers: BTreeMap::new(),
            by_port: HashMap::new(),
            by_probed_port: HashMap::new(),
            by_flow: HashMap::new(),
            flags: HashMap::new(),
            steering: None,
            tap: None,
            queue: Queue::new(limits),
            wanted: BTreeSet::new(),
            strays: 0,
            registered: true,
        };
        gate.maps.counters.insert(&cookie, &Counters::default())?;
        gate.register(0)?;
        let interfaces = ["lo", "eth0"].into_iter();
        for interface in interfaces.filter(|name| *name == "lo" || eth_ifindex != 0) {
            let netns = gate.netns.as_fd();
            let link = attach(pins, GATE_PROGRAM, netns, interface, method)?;
            gate.links.push(link);
        }
        Ok(gate)
    }

    /// The network namespace's cookie: the key of its map entries, for [`purge`].
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The pod's network namespace.
    #[must_use]
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// Makes `ports` the managed ports of `container`, TCP and UDP, in place of those before. The
    /// times noted for ports that stay are kept.
    ///
    /// # Errors
    ///
    /// [`GateError::PortTaken`] if another container of the pod has one of them,
    /// [`GateError::TooManyPorts`]; nothing is changed then.
    pub fn set_ports(
        &mut self,
        container: ContainerKey,
        ports: &BTreeSet<u16>,
    ) -> Result<(), GateError> {
        if ports.len() > MOST_PORTS {
            return Err(GateError::TooManyPorts { ports: ports.len() });
        }
        for port in ports {
            if let Some(owner) = self.by_port.get(port).filter(|owner| **owner != container) {
                return Err(GateError::PortTaken {
                    port: *port,
                    owner: *owner,
                });
            }
        }
        let entry = self.containers.entry(container).or_default();
        let old = entry.ports.clone();
        for port in old.difference(ports) {
            self.remove_port(container, *port)?;
        }
        for port in ports.difference(&old) {
            self.remove_probed(*port)?;
            self.books(container).ports.insert(*port);
            self.by_port.insert(*port, container);
            self.tell_port(*port)?;
        }
        Ok(())
    }

    /// When a packet that counts last came for a port of `container`, as `CLOCK_MONOTONIC`; `None`
    /// if never. Counted are connection requests and ends, payload, and UDP; acknowledgements and
    /// keepalives are not. To a tick of the kernel's clock (1 to 10 ms), never in the future.
    pub fn last_activity(&self, container: ContainerKey) -> Result<Option<Duration>, GateError> {
        let Some(entry) = self.containers.get(&container) else {
            return Ok(None);
        };
        let mut last = 0;
        for port in &entry.ports {
            for protocol in PROTOCOLS {
                let key = PortKey::new(self.cookie, *port, protocol);
                let value = self.maps.ports.get(&key)?;
                last = last.max(value.map_or(0, |value| value.activity));
            }
        }
        Ok(monotonic(last))
    }

    /// The same for TCP on ports that no container has: connections that the pod's containers have
    /// opened themselves. The programs cannot tell whose.
    pub fn last_other_activity(&self) -> Result<Option<Duration>, GateError> {
        let entry = self.maps.netns.get(&self.cookie)?;
        Ok(entry.and_then(|entry| monotonic(entry.other_activity)))
    }

    /// Ends whatever there is of `container`. Frames held for it go to the kernel, which refuses
    /// connections that nobody listens for.
    pub fn remove(&mut self, container: ContainerKey) -> Result<Released, GateError> {
        let mut result = self.release(container);
        for port in self.books(container).ports.clone() {
            if let Err(error) = self.remove_port(container, port) {
                result = result.and(Err(error));
            }
        }
        for port in self.books(container).probed.clone() {
            if let Err(error) = self.remove_probed(port) {
                result = result.and(Err(error));
            }
        }
        self.containers.remove(&container);
        result
    }

    /// Packets that the programs have held, dropped and taken back.
    pub fn counters(&self) -> Result<Counters, GateError> {
        Ok(self.maps.counters.get(&self.cookie)?.unwrap_or_default())
    }

    /// Looks at the sockets of the pod's network namespace that are among `held`.
    pub fn sockets(
        &mut self,
        held: &sockets::Held,
        wanted: sockets::Wanted,
    ) -> Result<sockets::Sockets, sockets::SocketError> {
        self.inquiry.list(self.netns.as_fd(), held, wanted)
    }

    fn take_back(&mut self) -> Vec<GateError> {
        let mut failures = Vec::new();
        let containers: Vec<_> = self.containers.keys().copied().collect();
        for container in containers {
            failures.extend(self.remove(container).err());
        }
        failures.extend(self.stop_steering().err());
        failures.extend(self.drain().err());
        if let Some(tap) = self.tap.take() {
            failures.extend(tap.remove(self.netns.as_fd()).err());
        }
        for link in self.links.drain(..) {
            failures.extend(link.detach().map_err(GateError::from).err());
        }
        if std::mem::take(&mut self.registered) {
            let removals = [
                self.maps.netns.remove(&self.cookie),
                self.maps.counters.remove(&self.cookie),
            ];
            failures.extend(
                removals
                    .into_iter()
                    .filter_map(Result::err)
                    .map(GateError::from),
            );
        }
        failures
    }

    fn books(&mut self, container: ContainerKey) -> &mut Container {
        self.containers.entry(container).or_default()
    }

    fn register(&mut self, tap_ifindex: u32) -> Result<(), GateError> {
        let before = self.maps.netns.get(&self.cookie)?.unwrap_or_default();
        let value = NetnsValue {
            tap_ifindex,
            eth_ifindex: self.eth_ifindex,
            ..before
        };
        Ok(self.maps.netns.insert(&self.cookie, &value)?)
    }

    /// Tells the programs what happens to the packets of a container's ports.
    fn tell_ports(&mut self, container: ContainerKey) -> Result<(), GateError> {
        let mut result = Ok(());
        for port in self.books(container).ports.clone() {
            result = result.and(self.tell_port(port));
        }
        result
    }

    /// The same for one port, if a container has it.
    fn tell_port(&mut self, port: u16) -> Result<(), GateError> {
        let Some(owner) = self.by_port.get(&port).copied() else {
            return self.tell_probed(port);
        };
        let mode = if self.books(owner).holding {
            Mode::Hold
        } else if self.by_flow.keys().any(|flow| flow.local.port() == port) {
            Mode::Shared
        } else {
            Mode::Awake
        };
        let flags = self.flags.get(&port).copied().unwrap_or_default();
        let mut result = Ok(());
        for protocol in PROTOCOLS {
            let key = PortKey::new(self.cookie, port, protocol);
            let value = PortValue::new(owner.0, mode, flags);
            result = result.and(self.replace(&key, value));
        }
        result
    }

    /// Puts `value` there with the times of what was there.
    fn replace(&mut self, key: &PortKey, value: PortValue) -> Result<(), GateError> {
        let before = self.maps.ports.get(key)?;
        let value = before.map_or(value, |before| value.with_times_of(&before));
        Ok(self.maps.ports.insert(key, &value)?)
    }

    fn remove_port(&mut self, container: ContainerKey, port: u16) -> Result<(), GateError> {
        let mut result = Ok(());
        for protocol in PROTOCOLS {
            let key = PortKey::new(self.cookie, port, protocol);
            result = result.and(self.maps.ports.remove(&key));
        }
        self.books(container).ports.remove(&port);
        self.flags.remove(&port);
        self.by_port.remove(&port);
        Ok(result?)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        for failure in self.take_back() {
            log::warn!("closing the gate: {failure}");
        }
    }
}

/// Removes the map entries of the network namespace with the cookie `netns`, whose shim was killed.
/// Its links and tap went with its descriptors.
pub fn purge(pins: &Path, netns: u64) -> Result<(), GateError> {
    Ok(Maps::open(pins)?.purge(netns)?)
}

fn monotonic(nanoseconds: u64) -> Option<Duration> {
    (nanoseconds != 0).then(|| Duration::from_nanos(nanoseconds))
}
