//! The maps' keys and values, as in `programs/gate.bpf.h`.

use std::net::{IpAddr, SocketAddr};

/// Transport protocol of a managed port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// Value of `netns`: what a registered network namespace has for interfaces.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetnsValue {
    /// Index of the tap that takes held frames, 0 while nobody is held.
    pub tap_ifindex: u32,
    /// Index of `eth0`, 0 if there is none.
    pub eth_ifindex: u32,
    /// Time of the last TCP segment that counts on a port that is not managed (connections that the
    /// pod opened), ns of `CLOCK_MONOTONIC`. The programs write it, and replacing the entry may lose
    /// what they write meanwhile.
    pub other_activity: u64,
    /// Time of the last connection request of a probe for such a port, as above.
    pub other_probe: u64,
}

/// Key of `ports`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortKey {
    netns: u64,
    port: u16,
    protocol: u8,
    pad: [u8; 5],
}

impl PortKey {
    /// The key of `port` in the network namespace with the cookie `netns`.
    #[must_use]
    pub const fn new(netns: u64, port: u16, protocol: Protocol) -> Self {
        Self {
            netns,
            port,
            protocol: protocol.number(),
            pad: [0; 5],
        }
    }

    /// Cookie of the network namespace.
    #[must_use]
    pub const fn netns(&self) -> u64 {
        self.netns
    }
}

/// What happens to the packets of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They pass; their time is noted.
    Awake,
    /// They are held.
    Hold,
    /// As `Awake`, but `flows` has connections of a sleeping container with this port, which are
    /// held. Those with a port in mode `Awake` are not looked for.
    Shared,
}

/// What else is true of a port, beside its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortFlags(u16);

impl PortFlags {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Connections of noted probes go to the responder of the network namespace: their packets pass
    /// whatever the mode. Only where [`Responders`](crate::Responders) has the namespace and the
    /// program is [attached](crate::attach_steer); without, they go to the application.
    pub const STEER: Self = Self(1);
    /// Probes count as use like everything else.
    pub const COUNT_PROBES: Self = Self(2);
    /// Nothing but probes is looked after: other packets are dealt with as those of a port that is
    /// not there. Not with [`Mode::Awake`].
    pub const PROBED: Self = Self(4);

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` are there.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Value of `ports`. The times are ns of `CLOCK_MONOTONIC`, 0 if there was none. The programs write
/// them, and replacing the entry may lose what they write meanwhile.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortValue {
    /// The container, by a number that its shim gave it.
    pub container: u32,
    mode: u16,
    flags: u16,
    /// Time of the last packet that counts; up to 50 ms behind.
    pub activity: u64,
    /// Time of the last connection request of a probe.
    pub probe_last: u64,
    /// Nanoseconds between two of those: the longest of the recent ones, of which an older one counts
    /// for three quarters with each that follows. So several probes of one port, which do not come
    /// evenly, have the longest pause between them. 0 until the second.
    pub probe_gap: u64,
}

impl PortValue {
    /// A port of `container`, not used yet.
    #[must_use]
    pub const fn new(container: u32, mode: Mode, flags: PortFlags) -> Self {
        let mode = match mode {
            Mode::Awake => 0,
            Mode::Hold => 1,
            Mode::Shared => 2,
        };
        Self {
            container,
            mode,
            flags: flags.0,
            activity: 0,
            probe_last: 0,
            probe_gap: 0,
        }
    }

    /// The same with the times of another one.
    #[must_use]
    pub const fn with_times_of(mut self, other: &Self) -> Self {
        self.activity = other.activity;
        self.probe_last = other.probe_last;
        self.probe_gap = other.probe_gap;
        self
    }
}

/// Key of `flows`: one TCP connection, seen from the pod.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowKey {
    netns: u64,
    local: [u8; 16],
    remote: [u8; 16],
    local_port: u16,
    remote_port: u16,
    pad: u32,
}

impl FlowKey {
    /// The key of the connection between `local` and `remote`. Both forms of an IPv4 address
    /// (`1.2.3.4` and `::ffff:1.2.3.4`) give the same key.
    #[must_use]
    pub fn new(netns: u64, local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            netns,
            local: v6_octets(local.ip()),
            remote: v6_octets(remote.ip()),
            local_port: local.port(),
            remote_port: remote.port(),
            pad: 0,
        }
    }

    /// Cookie of the network namespace.
    #[must_use]
    pub const fn netns(&self) -> u64 {
        self.netns
    }
}

/// Value of `flows`: the connection's end in the pod, which sleeps.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowValue {
    /// The container, by a number that its shim gave it.
    pub container: u32,
    /// Sequence number of the next byte that the socket waits for.
    pub rcv_nxt: u32,
    /// Sequence number of the next byte that it would send; all before are acknowledged.
    pub snd_nxt: u32,
    /// The window as its segments announce it, scaled. 0: nothing but the container is known, and
    /// the peer's keepalives stay without an answer.
    pub window: u16,
    /// Not 0: the socket is there, and the kernel answers what asks for nothing.
    alive: u16,
}

impl FlowValue {
    /// A connection of `container`, of which no more is known.
    #[must_use]
    pub const fn new(container: u32) -> Self {
        Self {
            container,
            rcv_nxt: 0,
            snd_nxt: 0,
            window: 0,
            alive: 0,
        }
    }

    /// The same with a socket, which answers by itself what asks for nothing.
    #[must_use]
    pub const fn alive(mut self) -> Self {
        self.alive = 1;
        self
    }

    /// The same with the socket's state, so that keepalives are answered. (Announcing no window at
    /// all would keep the peer from ever sending what wakes the container.)
    #[must_use]
    pub const fn answering(mut self, rcv_nxt: u32, snd_nxt: u32, window: u16) -> Self {
        self.rcv_nxt = rcv_nxt;
        self.snd_nxt = snd_nxt;
        self.window = if window == 0 { 1 } else { window };
        self
    }
}

fn v6_octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// Key of `kubelets`: who opens connections that are probes.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KubeletKey {
    mount_namespace: u32,
    pid_namespace: u32,
    name: [u8; TASK_NAME],
}

/// The longest name that the kernel keeps of a process, and the zero behind it (`TASK_COMM_LEN`).
const TASK_NAME: usize = 16;

impl KubeletKey {
    /// Processes called `name` in the namespaces with these inode numbers. `None`: no process has
    /// such a name, it is empty or has more than 15 bytes or a zero.
    #[must_use]
    pub fn new(mount_namespace: u32, pid_namespace: u32, name: &str) -> Option<Self> {
        let mut bytes = [0; TASK_NAME];
        if name.is_empty() || name.len() >= TASK_NAME || name.contains('\0') {
            return None;
        }
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self {
            mount_namespace,
            pid_namespace,
            name: bytes,
        })
    }

    /// Whether both are of the same namespaces.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        (self.mount_namespace, self.pid_namespace) == (other.mount_namespace, other.pid_namespace)
    }
}

/// Key of `probes`: the connection of a probe, seen from the pod.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeKey {
    /// For a connection over a loopback interface, whose addresses say nothing by themselves, the
    /// cookie of its network namespace; else 0.
    netns: u64,
    local: [u8; 16],
    remote: [u8; 16],
    local_port: u16,
    remote_port: u16,
    pad: u32,
}

impl ProbeKey {
    /// The connection between `local`, in the pod, and `remote`, outside.
    #[must_use]
    pub fn from_outside(local: SocketAddr, remote: SocketAddr) -> Self {
        Self::over_loopback(0, local, remote)
    }

    /// Packets from `remote` to `local`, both in the network namespace with the cookie `netns`.
    #[must_use]
    pub fn over_loopback(netns: u64, local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            netns,
            local: v6_octets(local.ip()),
            remote: v6_octets(remote.ip()),
            local_port: local.port(),
            remote_port: remote.port(),
            pad: 0,
        }
    }
}

/// Value of `probes`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProbeValue {
    /// Cookie of the network namespace whose responder takes the connection; 0: none.
    pub steered_to: u64,
    /// When it was opened, ns of `CLOCK_MONOTONIC`.
    pub time: u64,
}

/// Key of `ignored_networks`, behind the length of the prefix: an address, IPv4 as `::ffff:1.2.3.4`.
pub(crate) fn network(address: IpAddr, prefix: u8) -> (u32, [u8; 16]) {
    let inside = match address {
        IpAddr::V4(_) => 96,
        IpAddr::V6(_) => 0,
    };
    (inside + u32::from(prefix), v6_octets(address))
}

/// The most user agents that can be ignored.
pub const MAX_AGENTS: usize = 8;
/// The most bytes that the beginning of an ignored user agent can have.
pub const MAX_AGENT: usize = 32;

/// The only value of `ignored`: what use does not count, and what there is to look for.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ignored {
    /// How many networks there are in `ignored_networks`.
    pub networks: u32,
    pub agents: u32,
    pub agent_lengths: [u8; MAX_AGENTS],
    pub agent: [[u8; MAX_AGENT]; MAX_AGENTS],
}

/// Value of `counters`: packets of one network namespace since it was registered.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Redirected to the tap.
    pub held: u64,
    /// Acknowledgements for sleeping connections, dropped.
    pub dropped: u64,
    /// Keepalives for sleeping connections, answered in their place.
    pub answered: u64,
    /// Written back through the tap.
    pub returned: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_size_the_programs_expect() {
        assert_eq!(size_of::<PortKey>(), 16);
        assert_eq!(size_of::<PortValue>(), 32);
        assert_eq!(size_of::<FlowKey>(), 48);
        assert_eq!(size_of::<NetnsValue>(), 24);
        assert_eq!(size_of::<FlowValue>(), 16);
        assert_eq!(size_of::<Counters>(), 32);
        assert_eq!(size_of::<KubeletKey>(), 24);
        assert_eq!(size_of::<ProbeKey>(), 48);
        assert_eq!(size_of::<ProbeValue>(), 16);
        assert_eq!(size_of::<Ignored>(), 272);
    }

    #[test]
    fn names_that_no_process_has_are_no_kubelets() {
        assert!(KubeletKey::new(1, 2, "fifteen-bytes-x").is_some());
        for name in ["", "sixteen-bytes-xy", "kube\0let"] {
            assert_eq!(KubeletKey::new(1, 2, name), None, "{name:?}");
        }
    }

    #[test]
    fn networks_of_ipv4_are_part_of_those_of_ipv6() {
        let (prefix, address) = network("10.0.0.0".parse().unwrap(), 8);
        assert_eq!(
            (prefix, &address[9..14]),
            (104, &[0, 0xff, 0xff, 10, 0][..])
        );
        assert_eq!(network("fd00::".parse().unwrap(), 8).0, 8);
    }

    #[test]
    fn both_forms_of_an_ipv4_address_are_one_flow() {
        let plain = FlowKey::new(
            1,
            "10.0.0.1:80".parse().unwrap(),
            "10.0.0.2:9".parse().unwrap(),
        );
        let mapped = FlowKey::new(
            1,
            "[::ffff:10.0.0.1]:80".parse().unwrap(),
            "[::ffff:10.0.0.2]:9".parse().unwrap(),
        );
        assert_eq!(plain, mapped);
    }
}
