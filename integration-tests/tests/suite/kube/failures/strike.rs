//! The faults themselves, with the real thing each.

use std::cell::Cell;
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use podmotion_integration_tests::{Client, Cluster, KubePod, set_memory_limit};
use rustix::process::{Pid, Signal, kill_process};

use super::super::manager::Account;
use super::PORT;
use crate::sleep::{SmallDisk, kill_criu};

type Act<'a> = Box<dyn Fn(&KubePod<'_>) -> Result<()> + 'a>;

/// How a fault comes and goes. It has what it needs for that.
pub(super) struct Scene<'a> {
    strike: Act<'a>,
    mend: Act<'a>,
}

impl<'a> Scene<'a> {
    /// A fault that ends by itself.
    fn new(strike: impl Fn(&KubePod<'_>) -> Result<()> + 'a) -> Self {
        Self {
            strike: Box::new(strike),
            mend: Box::new(|_| Ok(())),
        }
    }

    /// Lets it happen.
    pub(super) fn strike(&self, pod: &KubePod<'_>) -> Result<()> {
        (self.strike)(pod)
    }

    /// Ends it, for what would not end by itself.
    pub(super) fn mend(&self, pod: &KubePod<'_>) -> Result<()> {
        (self.mend)(pod)
    }
}

/// The shim of a pod.
fn shim_of(cluster: &Cluster, pod: &KubePod<'_>) -> Result<Pid> {
    let sleeper = pod.container("app")?.sleeper;
    let shims = cluster.node().shims()?;
    let shim = shims.iter().find(|shim| sleeper.is_of(&shim.command));
    Pid::from_raw(shim.context("no shim")?.pid).context("no pid")
}

pub(super) fn shim_killed(cluster: &Cluster) -> Result<Scene<'_>> {
    Ok(Scene::new(|pod| {
        kill_process(shim_of(cluster, pod)?, Signal::KILL).context("kill the shim")
    }))
}

pub(super) fn shim_stopped(cluster: &Cluster) -> Result<Scene<'_>> {
    Ok(Scene::new(|pod| {
        let shim = shim_of(cluster, pod)?;
        kill_process(shim, Signal::STOP).context("stop the shim")?;
        // The time is the fault.
        thread::sleep(Duration::from_secs(5));
        kill_process(shim, Signal::CONT).context("continue the shim")
    }))
}

pub(super) fn criu_killed(cluster: &Cluster) -> Result<Scene<'_>> {
    Ok(Scene::new(|pod| {
        let shim = shim_of(cluster, pod)?.as_raw_pid();
        // Where it has ended already the fault has come too late.
        kill_criu(shim).map(drop)
    }))
}

pub(super) fn containerd_killed(cluster: &Cluster) -> Result<Scene<'_>> {
    Ok(Scene::new(|_| {
        cluster.node().kill9()?;
        cluster.node().start_again()
    }))
}

pub(super) fn kubelet_killed(cluster: &Cluster) -> Result<Scene<'_>> {
    Ok(Scene::new(|_| cluster.restart_kubelet()))
}

pub(super) fn manager_killed(cluster: &Cluster) -> Result<Scene<'_>> {
    let account = Account::new(cluster)?;
    let start = move || account.start(cluster, &["--status-labels"]);
    let running = Cell::new(Some(start()?));
    Ok(Scene::new(move |pod| {
        running.take().context("no manager")?.kill()?;
        let manager = start()?;
        manager.wait("the pod", |seen| {
            Ok((!seen.mentions(pod.name())).then(|| anyhow!("it has no figures")))
        })?;
        running.set(Some(manager));
        Ok(())
    }))
}

pub(super) fn disk_full(cluster: &Cluster) -> Result<Scene<'_>> {
    let disk = SmallDisk::new(
        cluster.node(),
        "size=96m",
        "checkpoint.backoff_initial = \"10ms\"",
    )?;
    let filler = disk.folder().join("filler");
    Ok(Scene {
        strike: Box::new(move |_| {
            let mut file = fs::File::create(&filler).context("make a file")?;
            let full = std::io::copy(&mut std::io::repeat(1), &mut file);
            let code = full.err().and_then(|error| error.raw_os_error());
            ensure!(code == Some(libc::ENOSPC), "the disk is not full: {code:?}");
            Ok(())
        }),
        mend: Box::new(
            move |_| match fs::remove_file(disk.folder().join("filler")) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(error).context("remove what fills the disk")
                }
                _ => Ok(()),
            },
        ),
    })
}

pub(super) fn memory_limit_too_low(_: &Cluster) -> Result<Scene<'_>> {
    Ok(Scene::new(|pod| {
        // Less than its 30 MB of data.
        let group = pod.container("app")?.cgroup()?;
        set_memory_limit(&group, Some(12 << 20))?;
        // Its client does not get an answer of the old process.
        drop(Client::default().get(pod.address(PORT)?, "/"));
        Ok(())
    }))
}

/// Rules in the node's own tables, as kube-proxy writes them for a service with one pod behind it. They go with it.
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

impl Rules {
    fn new() -> Result<Self> {
        let rules = Self;
        // A machine without a default route.
        run(Command::new("ip").args(["route", "add", SERVICE, "dev", "kube0"]))?;
        for chain in ["KUBE-SERVICES", "KUBE-SEP-TEST", "KUBE-MARK-MASQ"] {
            iptables(&["-N", chain])?;
        }
        for chain in ["OUTPUT", "PREROUTING"] {
            iptables(&["-I", chain, "-j", "KUBE-SERVICES"])?;
        }
        iptables(&["-A", "KUBE-MARK-MASQ", "-j", "MARK", "--or-mark", "0x4000"])?;
        Ok(rules)
    }

    /// Has the service lead to this pod.
    fn lead_to(&self, pod: SocketAddr) -> Result<()> {
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
        ])
    }
}

pub(super) fn kube_proxy_rules(_: &Cluster) -> Result<Scene<'_>> {
    let rules = Rules::new()?;
    Ok(Scene::new(move |pod| {
        rules.lead_to(pod.address(PORT)?)?;
        let answer = Client::default().get(format!("{SERVICE}:{PORT}").parse()?, "/mem")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    }))
}
