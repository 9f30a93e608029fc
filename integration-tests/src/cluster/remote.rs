//! A Kubernetes whose only node is a virtual machine: the control plane is out here, the kubelet is a unit of
//! the machine's systemd, on the machine's own containerd.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::control::{Control, Identity};
use super::network::Place;
use super::{Kubectl, make_runtime_class, start_control};
use crate::PATIENCE;
use crate::image::Image;
use crate::tools::Tools;
use crate::vm::Vm;

/// How long anything may take that an emulated kubelet does.
const EMULATED: Duration = Duration::from_secs(3 * PATIENCE.as_secs());

/// Where the machine's files of Kubernetes are.
const CERTIFICATE: &str = "/etc/kubernetes/apiserver.crt";
const KUBECONFIG: &str = "/etc/kubernetes/kubelet.kubeconfig";
const KUBELET: &str = "/etc/kubernetes/kubelet.json";

/// What the distribution's containerd takes for a pod's sandbox unless it is told otherwise.
const SANDBOX: &str = "registry.k8s.io/pause:3.8";

/// A control plane, for one [`Vm`] as its node. One a machine, and none while there is a [`super::Cluster`].
#[derive(Debug)]
pub struct RemoteNode {
    control: Control,
    kubectl: Kubectl,
}

impl RemoteNode {
    /// The node's name.
    pub const NAME: &str = Place::Vm.name();

    /// Starts the control plane.
    pub fn start(tools: &Tools) -> Result<Self> {
        let (control, _) = start_control(tools, "remote")?;
        let kubectl = Kubectl::new(tools, control.config_of(Identity::Admin))?;
        Ok(Self { control, kubectl })
    }

    /// The command line.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Makes the machine a node, with network and images for pods; returns once pods can be made. Its kubelet
    /// starts with it from now on.
    pub fn join(&self, vm: &Vm) -> Result<()> {
        let certificate = self.control.certificate();
        let certificate = std::fs::read_to_string(&certificate)
            .with_context(|| format!("read {}", certificate.display()))?;
        let identity = Identity::Kubelet(Place::Vm);
        let kubeconfig = self.control.kubeconfig(identity, Path::new(CERTIFICATE));
        vm.write(CERTIFICATE, &certificate)?;
        vm.write(KUBECONFIG, &kubeconfig.to_string())?;
        vm.write(KUBELET, &kubelet().to_string())?;
        vm.write(
            "/etc/cni/net.d/10-podmotion.conflist",
            &network().to_string(),
        )?;
        vm.write("/etc/systemd/system/kubelet.service", &unit())?;
        let pause = Image::Pause.reference();
        vm.sh_for(
            EMULATED,
            &format!(
                "set -e; for image in /podmotion/images/*.tar; do
                     ctr --namespace k8s.io images import --snapshotter overlayfs $image
                 done
                 ctr --namespace k8s.io images tag {pause} {SANDBOX}
                 systemctl enable --now kubelet"
            ),
        )?;
        make_runtime_class(&self.kubectl)?;
        self.wait("serviceaccount/default", "create")?;
        let node = format!("node/{}", Self::NAME);
        self.wait(&node, "create")?;
        self.wait(&node, "condition=Ready")
    }

    /// Waits until `condition` is true of `what`, as [`Kubectl::wait`], for as long as the emulated kubelet may
    /// take.
    pub fn wait(&self, what: &str, condition: &str) -> Result<()> {
        self.kubectl.wait_for(EMULATED, what, condition)
    }
}

fn unit() -> String {
    format!(
        "[Unit]\nWants=containerd.service\nAfter=containerd.service\n\n\
         [Service]\nExecStart=/podmotion/kubelet --config={KUBELET} --kubeconfig={KUBECONFIG} \
         --hostname-override={} --node-ip={}\nRestart=always\nRestartSec=1\n\n\
         [Install]\nWantedBy=multi-user.target\n",
        RemoteNode::NAME,
        Place::Vm.address()
    )
}

fn kubelet() -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "systemd",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "resolvConf": "",
        // Nobody else has images.
        "imageGCHighThresholdPercent": 100,
    })
}

fn network() -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "podmotion-test",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.78.0.0/24"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}
