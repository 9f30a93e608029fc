//! Network namespaces for containers that `ctr` would run: CRI makes its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, anyhow};

use crate::machine::run;

/// The bridge that all of them hang on. The node's own end has number 1.
const BRIDGE: &str = "pmt0";

static NEXT: AtomicU16 = AtomicU16::new(2);
static BRIDGE_MADE: OnceLock<Result<(), String>> = OnceLock::new();

/// A network namespace with an `eth0` that reaches the node and its siblings over IPv4 and IPv6. Goes
/// with its last owner.
#[derive(Debug)]
pub struct Netns {
    name: String,
    number: u16,
}

impl Netns {
    /// Makes one. [`crate::Machine::enter`] must have been called.
    pub fn new() -> Result<Self> {
        BRIDGE_MADE
            .get_or_init(|| make_bridge().map_err(|error| format!("{error:#}")))
            .clone()
            .map_err(|error| anyhow!(error))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Named before it is made: what fails halfway is removed too.
        let netns = Self {
            name: format!("pmt{number}"),
            number,
        };
        let name = &netns.name;
        ip(&format!("netns add {name}"))?;
        ip(&format!(
            "link add {name} mtu 1500 type veth peer name eth0 netns {name}"
        ))?;
        ip(&format!("link set {name} master {BRIDGE} up"))?;
        for command in [
            "link set lo up".to_owned(),
            format!("address add {}/16 dev eth0", netns.ipv4()),
            format!("address add {}/64 dev eth0 nodad", netns.ipv6()),
            "link set eth0 up".to_owned(),
            format!("route add default via {}", ipv4(1)),
        ] {
            ip(&format!("-n {name} {command}"))?;
        }
        Ok(netns)
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of the node on their bridge, which the first of them makes.
    pub fn node_ipv4() -> IpAddr {
        ipv4(1)
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// The address of its `eth0`.
    pub fn ipv4(&self) -> IpAddr {
        ipv4(self.number)
    }

    /// The other address of its `eth0`.
    pub fn ipv6(&self) -> IpAddr {
        ipv6(self.number)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The node's end goes at once; the rest when the last process in the namespace has gone.
        let _ = ip(&format!("link delete {}", self.name));
        let _ = ip(&format!("netns delete {}", self.name));
    }
}

fn ipv4(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 78, high, low).into()
}

fn ipv6(number: u16) -> IpAddr {
    Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, number).into()
}

fn make_bridge() -> Result<()> {
    ip(&format!("link add {BRIDGE} type bridge"))?;
    ip(&format!("address add {}/16 dev {BRIDGE}", ipv4(1)))?;
    ip(&format!("address add {}/64 dev {BRIDGE} nodad", ipv6(1)))?;
    ip(&format!("link set {BRIDGE} up"))
}

fn ip(arguments: &str) -> Result<()> {
    run(Command::new("ip").args(arguments.split(' '))).map(drop)
}
