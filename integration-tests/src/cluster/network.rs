//! Where the parts of a cluster are on the network.
//!
//! ```text
//!   machine: control plane, node-1          rooms: node-2, node-3
//!   10.77.0.1 on kube0 ─────────────────── 10.77.0.2 (or .3) on eth0
//!   10.79.A.0/24 on cniA: its pods          10.79.B.0/24 on cniB: its pods
//! ```
//!
//! A virtual machine, `node-4`, is behind its emulator, which makes its connections.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result};

use crate::machine::run;
use crate::node::Node;
use crate::room::Room;

/// Where the control plane and the first kubelet listen.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The bridge with that address.
const DEVICE: &str = "kube0";
/// Where the API server listens.
pub(super) const API_PORT: u16 = 6443;
/// The first one of [`SERVICES`], which is its own.
const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// Services get their addresses from it.
pub(super) const SERVICES: &str = "10.96.0.0/24";

/// Where a node can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Beside the control plane, in the machine's own namespaces.
    Machine,
    /// In a room.
    Room,
    /// In another one.
    OtherRoom,
    /// In a virtual machine.
    Vm,
}

impl Place {
    pub(super) const ALL: [Self; 4] = [Self::Machine, Self::Room, Self::OtherRoom, Self::Vm];

    /// The node's name in Kubernetes.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Machine => "node-1",
            Self::Room => "node-2",
            Self::OtherRoom => "node-3",
            Self::Vm => "node-4",
        }
    }

    /// Where its kubelet listens.
    pub(super) fn address(self) -> Ipv4Addr {
        match self {
            Self::Machine => ADDRESS,
            Self::Room => Ipv4Addr::new(10, 77, 0, 2),
            Self::OtherRoom => Ipv4Addr::new(10, 77, 0, 3),
            // The first one that the emulator's own network gives.
            Self::Vm => Ipv4Addr::new(10, 0, 2, 15),
        }
    }
}

/// Makes an address that is not the loopback's, which neither the API server nor the kubelet would take. An
/// earlier control plane may have made it.
pub(super) fn own_address() -> Result<()> {
    if ip(&format!("link show {DEVICE}")).is_ok() {
        return Ok(());
    }
    ip(&format!("link add {DEVICE} type bridge"))?;
    ip(&format!("address add {ADDRESS}/24 dev {DEVICE}"))?;
    ip(&format!("link set {DEVICE} up"))
}

/// A room on the bridge, for the node of `place`.
pub(super) fn room(place: Place) -> Result<Room> {
    // Its sockets' paths must not be longer than the kernel takes.
    let name = format!("room-{}", place.address().octets()[3]);
    Room::new(&name, place.address(), DEVICE, ADDRESS)
}

/// Lets the pods of the node at `place`, in `room`, and those of the machine reach each other.
pub(super) fn join(place: Place, node: &Node, room: &Room) -> Result<()> {
    // The way back is the room's default route.
    ip(&format!(
        "route add {} via {}",
        node.pod_network(),
        place.address()
    ))?;
    forward()?;
    room.within(|| {
        forward()?;
        api_server()
    })?
}

/// Has the service `kubernetes` lead to the API server, as kube-proxy would.
fn api_server() -> Result<()> {
    for chain in ["OUTPUT", "PREROUTING"] {
        let rule = format!(
            "-t nat -A {chain} -d {API_SERVICE} -p tcp --dport 443 -j DNAT --to {ADDRESS}:{API_PORT}"
        );
        run(Command::new("iptables").args(rule.split(' ')))?;
    }
    Ok(())
}

/// Lets packets through the caller's network namespace.
fn forward() -> Result<()> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    fs::write(path, "1").with_context(|| format!("write {path}"))
}

fn ip(arguments: &str) -> Result<()> {
    run(Command::new("ip").args(arguments.split(' '))).map(drop)
}
