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

/// Value of `ports`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortValue {
    /// The container, by a number that its shim gave it.
    pub container: u32,
    mode: u32,
    /// Time of the last packet that counts, ns of `CLOCK_MONOTONIC`, 0 if there was none. The
    /// programs write it, and replacing the entry may lose what they write meanwhile.
    pub activity: u64,
}

impl PortValue {
    /// A port of `container`, not used yet.
    #[must_use]
    pub const fn new(container: u32, mode: Mode) -> Self {
        let mode = match mode {
            Mode::Awake => 0,
            Mode::Hold => 1,
            Mode::Shared => 2,
        };
        Self {
            container,
            mode,
            activity: 0,
        }
    }

    /// The same, last used at `activity`.
    #[must_use]
    pub const fn used_at(mut self, activity: u64) -> Self {
        self.activity = activity;
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
        assert_eq!(size_of::<PortValue>(), 16);
        assert_eq!(size_of::<FlowKey>(), 48);
        assert_eq!(size_of::<NetnsValue>(), 16);
        assert_eq!(size_of::<FlowValue>(), 16);
        assert_eq!(size_of::<Counters>(), 32);
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
