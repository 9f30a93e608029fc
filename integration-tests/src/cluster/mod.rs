//! A Kubernetes of one machine: the real programs, with a [`Node`]'s containerd below each kubelet.
//!
//! ```text
//!   kubectl ──> kube-apiserver ──> etcd
//!                 ^    ^    ^
//!      controllers┘ scheduler└ kubelet ──CRI──> containerd ──> shims
//! ```
//!
//! Everything listens on addresses of the machine's own network namespace and keeps its files in its
//! folder, so it goes with the machine. Started anew it needs about ten seconds to a ready node. A second
//! node, and one that Podmotion is still to be put on, are in [rooms](crate::room) of their own.

mod control;
mod daemon;
mod kubectl;
mod kubelet;
mod logind;
mod network;
mod pod;
mod remote;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};

pub use self::kubectl::Kubectl;
pub use self::logind::Logind;
pub use self::pod::{KubeContainer, KubePod, container_id};
pub use self::remote::RemoteNode;

use self::control::{Control, Identity};
use self::kubelet::Kubelet;
use self::network::Place;
use crate::image::Image;
use crate::machine::Machine;
use crate::node::Node;
use crate::room::Room;
use crate::tools::{Depth, Tools};

/// A control plane and up to three nodes. Dropping it ends the programs, kubelets first; pods that still run
/// go when the machine is left.
#[derive(Debug)]
pub struct Cluster {
    first: Member,
    second: OnceLock<Member>,
    bare: OnceLock<Member>,
    control: Control,
    kubectl: Kubectl,
    folder: PathBuf,
}

/// A change of the first kubelet's configuration, see [`Cluster::set_kubelet`].
#[derive(Debug)]
#[must_use]
pub struct KubeletSettings<'a>(&'a Cluster);

impl Drop for KubeletSettings<'_> {
    fn drop(&mut self) {
        // Tests that follow find no ready node then, and say so.
        let _ = self.0.restart_kubelet();
    }
}

/// One of its nodes.
#[derive(Debug)]
struct Member {
    kubelet: Mutex<Kubelet>,
    node: Node,
}

impl Member {
    fn start(
        place: Place,
        node: Node,
        images: &[Image],
        control: &Control,
        folder: &Path,
    ) -> Result<Self> {
        for image in images {
            node.need_cri_image(*image)?;
        }
        let config = control.config_of(Identity::Kubelet(place));
        let kubelet = Kubelet::start(
            place,
            &node,
            &folder.join(place.name()),
            config,
            &serde_json::json!({}),
            None,
        )?;
        let kubelet = Mutex::new(kubelet);
        Ok(Self { kubelet, node })
    }

    fn log_tails(&self) -> String {
        let containerd = self.node.log_tail();
        format!("{}\ncontainerd:\n{containerd}", self.kubelet().log_tail())
    }

    fn kubelet(&self) -> MutexGuard<'_, Kubelet> {
        // A test that panicked must not take the others with it.
        self.kubelet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cluster {
    /// Starts one on `node`, which nothing else uses, and returns once pods can be made. One a machine.
    pub fn start(node: Node) -> Result<Self> {
        let (control, folder) = start_control(node.tools(), "cluster")?;
        let kubectl = Kubectl::new(node.tools(), control.config_of(Identity::Admin))?;
        let images = [Image::Pause, Image::Busybox, Image::Apps];
        let cluster = Self {
            first: Member::start(Place::Machine, node, &images, &control, &folder)?,
            second: OnceLock::new(),
            bare: OnceLock::new(),
            control,
            kubectl,
            folder,
        };
        cluster.settle().with_context(|| cluster.logs())?;
        Ok(cluster)
    }

    /// Its command line.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// The containerd of its first node, `node-1`.
    pub fn node(&self) -> &Node {
        &self.first.node
    }

    /// Starts the second node, `node-2`, with a containerd of the same versions and these settings, see
    /// [`Node::start_with`]. Pods of the one reach those of the other. It has `images` besides the pause one.
    pub fn add_node(&self, settings: &str, images: &[Image]) -> Result<&Node> {
        let (place, versions) = (Place::Room, self.node().versions());
        self.add(place, &self.second, images, |room| {
            Node::start_in(Some(room), versions, settings)
        })
    }

    /// Starts a node, `node-3`, that Podmotion is still to be put on, with folders of its own for all that
    /// that changes. It has `images` besides the pause one.
    pub fn add_bare_node(&self, images: &[Image]) -> Result<&Node> {
        let (place, versions) = (Place::OtherRoom, self.node().versions());
        self.add(place, &self.bare, images, |room| {
            Node::start_without_in(room, versions)
        })
    }

    fn add<'a>(
        &self,
        place: Place,
        slot: &'a OnceLock<Member>,
        images: &[Image],
        start: impl FnOnce(Arc<Room>) -> Result<Node>,
    ) -> Result<&'a Node> {
        let room = Arc::new(network::room(place)?);
        let node = start(Arc::clone(&room))?;
        network::join(place, &node, &room)?;
        let images = [&[Image::Pause], images].concat();
        let member = Member::start(place, node, &images, &self.control, &self.folder)?;
        if slot.set(member).is_err() {
            bail!("there is a {}", place.name());
        }
        self.wait_node(place).with_context(|| self.logs())?;
        let member = slot.get();
        member.map(|member| &member.node).context("no such node")
    }

    /// The containerd of its second node, if that was added.
    pub fn second_node(&self) -> Option<&Node> {
        self.second.get().map(|member| &member.node)
    }

    /// A thread in the namespaces of the second node, if that was added.
    pub fn second_thread(&self) -> Option<u32> {
        self.second_node()?.room().map(Room::thread)
    }

    /// Has containers that are made later sleep that deep, on each node.
    pub fn sleep(&self, depth: Depth) -> Result<()> {
        self.node().sleep(depth)?;
        self.second_node().map_or(Ok(()), |node| node.sleep(depth))
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

    /// Kills the first node's kubelet and starts it with these fields of its configuration set, until the
    /// result is dropped. Returns once it is healthy.
    pub fn set_kubelet(&self, settings: &serde_json::Value) -> Result<KubeletSettings<'_>> {
        let guard = KubeletSettings(self);
        self.start_kubelet(settings, None)?;
        Ok(guard)
    }

    /// The same, with a logind that can tell it that the machine ends.
    pub fn set_kubelet_with_logind(
        &self,
        settings: &serde_json::Value,
    ) -> Result<(KubeletSettings<'_>, Logind)> {
        let guard = KubeletSettings(self);
        let logind = Logind::start(&self.folder)?;
        self.start_kubelet(settings, Some(&logind.address()))?;
        Ok((guard, logind))
    }

    /// Kills the first node's kubelet and starts it again; returns once it is healthy.
    pub fn restart_kubelet(&self) -> Result<()> {
        self.start_kubelet(&serde_json::json!({}), None)
    }

    fn start_kubelet(&self, settings: &serde_json::Value, bus: Option<&str>) -> Result<()> {
        let mut kubelet = self.first.kubelet();
        kubelet.kill();
        let config = self.control.config_of(Identity::Kubelet(Place::Machine));
        let folder = self.folder.join(Place::Machine.name());
        *kubelet = Kubelet::start(Place::Machine, self.node(), &folder, config, settings, bus)?;
        kubelet.wait_healthy()
    }

    /// A pod that somebody else has made.
    pub fn pod(&self, name: &str) -> KubePod<'_> {
        KubePod::known(self, name)
    }

    /// What its programs said last, what says most first: reports are cut.
    pub fn logs(&self) -> String {
        let shims = self.first.node.log_about("msg=\"container ", None);
        let events = self
            .kubectl
            .run(&["get", "events", "-A", "--sort-by=.lastTimestamp"]);
        let events = events.unwrap_or_else(|error| format!("{error:#}"));
        let events: Vec<_> = events.lines().collect();
        let events = events[events.len().saturating_sub(20)..].join("\n");
        let nodes = [Some(&self.first), self.second.get(), self.bare.get()];
        let nodes = nodes.into_iter().flatten().map(Member::log_tails);
        let tails: Vec<_> = [format!("shims:\n{shims}\nevents:\n{events}")]
            .into_iter()
            .chain(nodes)
            .chain([self.control.log_tails()])
            .collect();
        tails.join("\n")
    }

    /// Waits for what a pod needs to be there, and makes the runtime class.
    fn settle(&self) -> Result<()> {
        self.wait_node(Place::Machine)?;
        self.kubectl.wait("serviceaccount/default", "create")?;
        self.make_runtime_class()
    }

    /// Makes our runtime class, or gives it back what it has here: each node may run its pods.
    pub fn make_runtime_class(&self) -> Result<()> {
        make_runtime_class(&self.kubectl)
    }

    fn wait_node(&self, place: Place) -> Result<()> {
        let node = format!("node/{}", place.name());
        self.kubectl.wait(&node, "create")?;
        self.kubectl.wait(&node, "condition=Ready")
    }
}

/// Starts the control plane, with its files in a new folder called `name`. One at a time.
fn start_control(tools: &Tools, name: &str) -> Result<(Control, PathBuf)> {
    let work = Machine::get()?.work();
    // There can have been one before.
    let mut folder = work.join(name);
    for number in 2.. {
        if !folder.exists() {
            break;
        }
        folder = work.join(format!("{name}-{number}"));
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    network::own_address()?;
    let control = Control::start(tools, &folder)?;
    Ok((control, folder))
}

fn make_runtime_class(kubectl: &Kubectl) -> Result<()> {
    kubectl.apply(&serde_json::json!({
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": "podmotion"},
        "handler": "podmotion",
    }))
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
