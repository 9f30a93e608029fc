//! What the programs are told for the whole node: who its kubelets are, and what is not use.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use podmotion_bpf::{IgnoredTraffic, KubeletKey, Kubelets};

use super::GateError;

/// The node's configuration, as far as the programs need it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeRules {
    /// Names of the processes that are kubelets.
    pub kubelets: Vec<String>,
    /// Networks, by an address and the length of the prefix, whose packets are not use.
    pub ignored_networks: Vec<(IpAddr, u8)>,
    /// Beginnings of user agents whose requests are not use.
    pub ignored_agents: Vec<String>,
}

impl NodeRules {
    /// Writes the rules to the maps pinned in `pins`. Those of another shim that came before go, but
    /// for its kubelets.
    ///
    /// A kubelet is a process in this one's mount and PID namespaces: containerd, which starts the
    /// shim, and the kubelet are programs of the node.
    ///
    /// # Errors
    ///
    /// [`GateError::NoProbes`] where the kernel does not let probes be told; all else is written then.
    pub fn tell(&self, pins: &Path) -> Result<(), GateError> {
        let agents: Vec<_> = self.ignored_agents.iter().map(String::as_str).collect();
        IgnoredTraffic::open(pins)?.set(&self.ignored_networks, &agents)?;
        let mut kubelets = Kubelets::open(pins).map_err(GateError::NoProbes)?;
        let mounts = namespace("mnt")?;
        let pids = namespace("pid")?;
        let keys = self.kubelets.iter();
        // A name that no process can have is nobody's.
        for key in keys.filter_map(|name| KubeletKey::new(mounts, pids, name)) {
            kubelets.admit(&key)?;
        }
        Ok(())
    }
}

/// The number that the kernel compares.
fn namespace(kind: &'static str) -> Result<u32, GateError> {
    let path = format!("/proc/self/ns/{kind}");
    let failed = |source| GateError::Namespace { kind, source };
    let inode = fs::metadata(path).map_err(failed)?.ino();
    u32::try_from(inode).map_err(|_| failed(io::ErrorKind::InvalidData.into()))
}
