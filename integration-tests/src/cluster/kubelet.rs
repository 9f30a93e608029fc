//! The kubelet, as its owners run it but for where its files are.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::daemon::Daemon;
use super::network::Place;
use super::write;
use crate::PATIENCE;
use crate::client::Client;
use crate::machine::Machine;
use crate::node::Node;

/// Where it says how it is.
const HEALTH: u16 = 10248;

/// A running kubelet.
#[derive(Debug)]
pub(super) struct Kubelet(Daemon);

impl Kubelet {
    /// Starts that of `node`, with its files in `folder`. It finds logind on `bus`, if anywhere.
    pub(super) fn start(
        place: Place,
        node: &Node,
        folder: &Path,
        kubeconfig: PathBuf,
        settings: &Value,
        bus: Option<&str>,
    ) -> Result<Self> {
        let root = folder.join("kubelet");
        fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
        // Kubelets end what is in a pod's group below their own and is not theirs.
        let groups = Machine::get()?.groups().create(place.name())?;
        let mut config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": Machine::get()?.cgroup_driver().name(),
            "cgroupRoot": groups,
            // The machine is not its own.
            "enforceNodeAllocatable": [],
            "failCgroupV1": false,
            "failSwapOn": false,
            "containerRuntimeEndpoint": format!("unix://{}", node.socket().display()),
            "resolvConf": "/etc/resolv.conf",
            "podLogsDir": folder.join("pods"),
            "volumePluginDir": folder.join("plugins"),
            // Whatever the machine is short of, it is not the tests' pods that go.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                "imagefs.available": "0%", "imagefs.inodesFree": "0%",
                "memory.available": "0%",
            },
            "healthzPort": HEALTH,
            // Changes reach the tests soon.
            "syncFrequency": "1s",
        });
        for (field, value) in settings.as_object().context("settings are fields")? {
            config[field] = value.clone();
        }
        let config = write(folder.join("kubelet.json"), &config.to_string())?;
        let program = node.tools().cached("kubernetes/bin/kubelet")?;
        let mut command = Command::new(program);
        command
            .arg(format!("--config={}", config.display()))
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--root-dir={}", root.display()))
            .arg(format!("--node-ip={}", place.address()))
            .arg(format!("--hostname-override={}", place.name()))
            .env("PATH", node.tools().path())
            .env(
                "DBUS_SYSTEM_BUS_ADDRESS",
                bus.unwrap_or("unix:path=/nowhere"),
            );
        let daemon = Daemon::start("kubelet", folder, node.room(), command)?;
        Ok(Self(daemon))
    }

    /// Ends it at once, as a crash would.
    pub(super) fn kill(&mut self) {
        self.0.kill();
    }

    /// Asks it until it says that it looks at its pods. It has no other way of saying so.
    pub(super) fn wait_healthy(&mut self) -> Result<()> {
        let address = SocketAddr::from(([127, 0, 0, 1], HEALTH));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = Client::default().get(address, "/healthz");
            if asked.as_ref().is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            self.0.check()?;
            ensure!(Instant::now() < deadline, "not healthy: {asked:?}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    pub(super) fn log_tail(&self) -> String {
        self.0.log_tail()
    }
}
