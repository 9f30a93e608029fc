//! A Kubernetes of one machine: the real programs, with a [`Node`]'s containerd below the kubelet.
//!
//! ```text
//!   kubectl ──> kube-apiserver ──> etcd
//!                 ^    ^    ^
//!      controllers┘ scheduler└ kubelet ──CRI──> containerd ──> shims
//! ```
//!
//! Everything listens on addresses of the machine's own network namespace and keeps its files in its
//! folder, so it goes with the machine. Started anew it needs about ten seconds to a ready node.

mod control;
mod daemon;
mod kubectl;
mod kubelet;
mod pod;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

pub use self::kubectl::Kubectl;
pub use self::pod::{KubeContainer, KubePod};

use self::control::{Control, Identity};
use self::kubelet::Kubelet;
use crate::image::Image;
use crate::machine::{Machine, run};
use crate::node::Node;

/// Where the control plane and the kubelet listen.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const DEVICE: &str = "kube0";
/// Services get their addresses from it.
const SERVICES: &str = "10.96.0.0/24";
/// The one node.
const NODE: &str = "node-1";

/// A control plane and a node. Dropping it ends the programs, kubelet first; pods that still run go
/// when the machine is left.
#[derive(Debug)]
pub struct Cluster {
    kubelet: Kubelet,
    control: Control,
    kubectl: Kubectl,
    node: Node,
}

impl Cluster {
    /// Starts one on `node`, which nothing else uses, and returns once pods can be made.
    pub fn start(node: Node) -> Result<Self> {
        let folder = Machine::get()?.work().join("cluster");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        own_address()?;
        for image in [Image::Apps, Image::Busybox, Image::Pause] {
            node.need_cri_image(image)?;
        }
        let control = Control::start(node.tools(), &folder)?;
        let kubectl = Kubectl::new(node.tools(), control.config_of(Identity::Admin))?;
        let kubelet = Kubelet::start(&node, &folder, control.config_of(Identity::Kubelet))?;
        let cluster = Self {
            kubelet,
            control,
            kubectl,
            node,
        };
        cluster.settle().with_context(|| cluster.logs())?;
        Ok(cluster)
    }

    /// Its command line.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// The containerd below its kubelet.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Makes what `manifest` describes, a pod, and returns once it is ready.
    pub fn run(&self, manifest: &serde_json::Value) -> Result<KubePod<'_>> {
        let pod = KubePod::create(self, manifest)?;
        pod.wait_ready()?;
        Ok(pod)
    }

    /// Makes the pod that `manifest` describes; it need not come up.
    pub fn create(&self, manifest: &serde_json::Value) -> Result<KubePod<'_>> {
        KubePod::create(self, manifest)
    }

    /// What its programs said last.
    pub fn logs(&self) -> String {
        format!(
            "{}\n{}\ncontainerd:\n{}",
            self.control.log_tails(),
            self.kubelet.log_tail(),
            self.node.log_tail()
        )
    }

    /// Waits for what a pod needs to be there, and makes the runtime class.
    fn settle(&self) -> Result<()> {
        let node = format!("node/{NODE}");
        self.kubectl.wait(&node, "create")?;
        self.kubectl.wait(&node, "condition=Ready")?;
        self.kubectl.wait("serviceaccount/default", "create")?;
        self.kubectl.apply(&serde_json::json!({
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": "podmotion"},
            "handler": "podmotion",
        }))
    }
}

/// An address that is not the loopback's, which neither the API server nor the kubelet would take.
fn own_address() -> Result<()> {
    if Path::new("/sys/class/net").join(DEVICE).exists() {
        return Ok(());
    }
    for arguments in [
        format!("link add {DEVICE} type bridge"),
        format!("address add {ADDRESS}/24 dev {DEVICE}"),
        format!("link set {DEVICE} up"),
    ] {
        run(Command::new("ip").args(arguments.split(' ')))?;
    }
    Ok(())
}

/// Writes a file of a program, for root alone.
fn write(path: PathBuf, text: &str) -> Result<PathBuf> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}
