//! The faults themselves, with the real thing each.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use podmotion_integration_tests::{Client, Cluster, KubePod, Manager, Node, set_memory_limit};
use rustix::process::{Pid, Signal, kill_process};

use super::super::manager::manager;
use super::PORT;
use crate::sleep::{SmallDisk, kill_criu};

/// What a fault needs, and how it comes.
pub(super) struct Scene<'a> {
    cluster: &'a Cluster,
    strike: fn(&Scene<'_>, &KubePod<'_>) -> Result<()>,
    mend: fn(&Scene<'_>, &KubePod<'_>) -> Result<()>,
    disk: Option<SmallDisk>,
    rules: Option<Rules>,
    manager: Cell<Option<Manager>>,
}

impl<'a> Scene<'a> {
    fn new(cluster: &'a Cluster, strike: fn(&Scene<'_>, &KubePod<'_>) -> Result<()>) -> Self {
        Self {
            cluster,
            strike,
            mend: |_, _| Ok(()),
            disk: None,
            rules: None,
            manager: Cell::new(None),
        }
    }

    /// Lets it happen.
    pub(super) fn strike(&self, pod: &KubePod<'_>) -> Result<()> {
        (self.strike)(self, pod)
    }

    /// Ends it, for what would not end by itself.
    pub(super) fn mend(&self, pod: &KubePod<'_>) -> Result<()> {
        (self.mend)(self, pod)
    }

    fn node(&self) -> &Node {
        self.cluster.node()
    }
}

/// The shim of a pod.
fn shim_of(scene: &Scene<'_>, pod: &KubePod<'_>) -> Result<Pid> {
    let sleeper = pod.container("app")?.sleeper;
    let shims = scene.node().shims()?;
    let shim = shims.iter().find(|shim| sleeper.is_of(&shim.command));
    Pid::from_raw(shim.context("no shim")?.pid).context("no pid")
}

pub(super) fn shim_killed(cluster: &Cluster) -> Result<Scene<'_>> {
    Ok(Scene::new(cluster, |scene, pod| {
        kill_process(shim_of(scene, pod)?, Signal::KILL).context("kill the shim")
    }))
}

pub(super) fn shim_stopped(cluster: &Cluster) -> Result<Scene<'_>> {
    Ok(Scene::new(cluster, |scene, pod| {
        let shim = shim_of(scene, pod)?;
        kill_process(shim, Signal::STOP).context("stop the shim")?;
        // The time is the fault.
        thread::sleep(Duration::from_secs(5));
        kill_process(shim, Signal::CONT).context("continue the shim")
    }))
}

pub(super) fn criu_killed(cluster: &Cluster) -> Result<Scene<'_>> {
    Ok(Scene::new(cluster, |scene, pod| {
        let shim = shim_of(scene, pod)?.as_raw_pid();
        // Where it has ended already the fault has come too late.
        kill_criu(shim).map(drop)
    }))
}

pub(super) fn containerd_killed(cluster: &Cluster) -> Result<Scene<'_>> {
    Ok(Scene::new(cluster, |scene, _| {
        scene.node().kill9()?;
        scene.node().start_again()
    }))
}

pub(super) fn kubelet_killed(cluster: &Cluster) -> Result<Scene<'_>> {
    Ok(Scene::new(cluster, |scene, _| {
        scene.cluster.restart_kubelet()
    }))
}

pub(super) fn manager_killed(cluster: &Cluster) -> Result<Scene<'_>> {
    const FLAGS: &[&str] = &["--status-labels"];
    Ok(Scene {
        manager: Cell::new(Some(manager(cluster, FLAGS)?)),
        ..Scene::new(cluster, |scene, pod| {
            scene.manager.take().context("no manager")?.kill()?;
            let manager = manager(scene.cluster, FLAGS)?;
            manager.wait("the pod", |seen| {
                Ok((!seen.mentions(pod.name())).then(|| anyhow!("it has no figures")))
            })?;
            scene.manager.set(Some(manager));
            Ok(())
        })
    })
}

pub(super) fn disk_full(cluster: &Cluster) -> Result<Scene<'_>> {
    let disk = SmallDisk::new(
        cluster.node(),
        "size=96m",
        "checkpoint.backoff_initial = \"10ms\"",
    )?;
    Ok(Scene {
        disk: Some(disk),
        mend: |scene, _| match fs::remove_file(filler(scene)?) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("remove what fills the disk")
            }
            _ => Ok(()),
        },
        ..Scene::new(cluster, |scene, _| {
            let mut file = fs::File::create(filler(scene)?).context("make a file")?;
            let full = std::io::copy(&mut std::io::repeat(1), &mut file);
            let code = full.err().and_then(|error| error.raw_os_error());
            ensure!(code == Some(libc::ENOSPC), "the disk is not full: {code:?}");
            Ok(())
        })
    })
}

/// What takes all room.
fn filler(scene: &Scene<'_>) -> Result<PathBuf> {
    let disk = scene.disk.as_ref().context("no disk")?;
    Ok(disk.folder().join("filler"))
}

pub(super) fn memory_limit_too_low(cluster: &Cluster) -> Result<Scene<'_>> {
    Ok(Scene::new(cluster, |_, pod| {
        // Less than its 30 MB of data.
        let group = pod.container("app")?.cgroup()?;
        set_memory_limit(&group, Some(12 << 20))?;
        // Its client does not get an answer of the old process.
        drop(Client::default().get(pod.address(PORT)?, "/"));
        Ok(())
    }))
}

/// Rules in the node's own tables, as kube-proxy writes them for a service with one pod behind it.
struct Rules;

const SERVICE: &str = "10.96.0.77";

impl Drop for Rules {
    fn drop(&mut self) {
        let _ = run(Command::new("ip").args(["route", "del", SERVICE, "dev", "kube0"]));
        for chain in ["OUTPUT", "PREROUTING"] {
            let _ = iptables(&["-D", chain, "-j", "KUBE-SERVICES"]);
        }
        for chain in ["KUBE-SERVICES", "KUBE-SEP-TEST", "KUBE-MARK-MASQ"] {
            let _ = iptables(&["-F", chain]);
        }
        for chain in ["KUBE-SERVICES", "KUBE-SEP-TEST", "KUBE-MARK-MASQ"] {
            let _ = iptables(&["-X", chain]);
        }
    }
}

fn iptables(arguments: &[&str]) -> Result<()> {
    run(Command::new("iptables")
        .args(["-w", "-t", "nat"])
        .args(arguments))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {said}");
    Ok(())
}

pub(super) fn kube_proxy_rules(cluster: &Cluster) -> Result<Scene<'_>> {
    let rules = Rules;
    // A machine without a default route.
    run(Command::new("ip").args(["route", "add", SERVICE, "dev", "kube0"]))?;
    for chain in ["KUBE-SERVICES", "KUBE-SEP-TEST", "KUBE-MARK-MASQ"] {
        iptables(&["-N", chain])?;
    }
    for chain in ["OUTPUT", "PREROUTING"] {
        iptables(&["-I", chain, "-j", "KUBE-SERVICES"])?;
    }
    iptables(&["-A", "KUBE-MARK-MASQ", "-j", "MARK", "--or-mark", "0x4000"])?;
    Ok(Scene {
        rules: Some(rules),
        ..Scene::new(cluster, |scene, pod| {
            ensure!(scene.rules.is_some(), "no rules");
            let pod = pod.address(PORT)?;
            iptables(&["-F", "KUBE-SERVICES"])?;
            iptables(&["-F", "KUBE-SEP-TEST"])?;
            let port = PORT.to_string();
            let service = ["-d", SERVICE, "-p", "tcp", "--dport", port.as_str()];
            iptables(
                &[
                    &["-A", "KUBE-SERVICES"],
                    &service[..],
                    &["-j", "KUBE-SEP-TEST"],
                ]
                .concat(),
            )?;
            let source = pod.ip().to_string();
            iptables(&["-A", "KUBE-SEP-TEST", "-s", &source, "-j", "KUBE-MARK-MASQ"])?;
            let target = pod.to_string();
            iptables(&[
                "-A",
                "KUBE-SEP-TEST",
                "-p",
                "tcp",
                "-j",
                "DNAT",
                "--to-destination",
                &target,
            ])?;
            let answer = Client::default().get(format!("{SERVICE}:{PORT}").parse()?, "/mem")?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        })
    })
}
