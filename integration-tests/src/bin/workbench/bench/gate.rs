//! What the gate costs while everybody is awake.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use aya::sys::{Stats, enable_stats};
use nix::sched::{CloneFlags, setns};
use podmotion_integration_tests::{App, Container, Image, Netns, Network, Node, Runtime, Stdout};

use super::Plan;
use super::figure::{Figure, Target};
use super::load::{Kind, Load};
use super::memory::PORT;
use crate::listener;
use crate::numbers::Samples;
use crate::report::Progress;

/// The gate's program on the way in; there is none on the way out.
const PROGRAM: &str = "/sys/fs/bpf/podmotion/v1/gate_ingress";
/// Nanoseconds for a packet.
const LIMIT: f64 = 200.0;
/// A known peer's, on the way in.
const PEER: f64 = 1700.0;
/// Packets that a mean needs at least.
const PACKETS: u64 = 1000;

/// Measures a packet's cost, and the load that a server takes beside one without a gate.
pub fn measure(node: &Node, plan: &Plan, progress: &Progress) -> Result<Vec<Figure>> {
    progress.begin("the gate's cost while awake");
    let ours = server(node, Runtime::Podmotion)?;
    let theirs = server(node, Runtime::Runc)?;
    let load = Load::new(node, plan.load_seconds)?;

    let mut each = Samples::default();
    for _ in 0..plan.loads {
        each.add(packet_cost(&load, &ours)?);
    }
    let out = programs_on_the_way_out(ours.netns().context("a server without a network")?)?;

    let mut figures = vec![
        Figure::new("gate, a packet in", "ns", each)
            .target(Target::AtMost(LIMIT))
            .peer(Some(PEER)),
        Figure::new("gate, programs on the way out", "", out as f64).target(Target::AtMost(0.0)),
    ];
    for kind in [Kind::Requests, Kind::Connections] {
        progress.detail(&format!("load: {}", kind.name()));
        let (mut mine, mut plain) = (Samples::default(), Samples::default());
        for round in 0..plan.loads {
            let mut pair = [(&ours, &mut mine), (&theirs, &mut plain)];
            // Who comes first takes turns.
            if round % 2 == 1 {
                pair.reverse();
            }
            for (container, samples) in pair {
                samples.add(load.run(container, kind)?);
            }
        }
        let figure = Figure::new(format!("nginx, {}", kind.name()), "1/s", mine);
        figures.push(figure.beside("io.containerd.runc.v2", plain));
    }
    progress.end("the gate's cost while awake");
    Ok(figures)
}

/// nginx, without anything that its runtime would have to carry to a log.
pub fn server(node: &Node, runtime: Runtime) -> Result<Container> {
    let app = App::new(["nginx", "-c", "/apps/nginx.conf"])
        .image(Image::Software)
        .network(Network::Own)
        .stdout(Stdout::Null)
        .annotation("scaledown-duration", "1h")
        .runtime(runtime);
    let container = node.run(app)?;
    listener::wait(container.address(PORT)?)?;
    if runtime == Runtime::Podmotion {
        // Its gate counts packets to the port once it has been looked at.
        container.sleeper().wait_until("counted port", |status| {
            status.ports.contains(&u32::from(PORT))
        })?;
    }
    Ok(container)
}

/// Nanoseconds for a packet in, by the kernel's own statistics. They cost time themselves, so they are off
/// while anything else is measured.
fn packet_cost(load: &Load, container: &Container) -> Result<f64> {
    let _on = enable_stats(Stats::RunTime).context("switch the kernel's BPF statistics on")?;
    let before = runs()?;
    load.run(container, Kind::Requests)?;
    let after = runs()?;
    let count = after.1 - before.1;
    ensure!(
        count >= PACKETS,
        "{count} packets have passed the gate: it is not in the way"
    );
    Ok((after.0 - before.0).as_nanos() as f64 / count as f64)
}

fn runs() -> Result<(Duration, u64)> {
    let program =
        ProgramInfo::from_pin(PROGRAM).with_context(|| format!("open the program {PROGRAM}"))?;
    Ok((program.run_time(), program.run_count()))
}

/// How many programs see a packet that leaves the container.
fn programs_on_the_way_out(netns: &Netns) -> Result<usize> {
    let path = netns.path();
    thread::scope(|scope| {
        scope
            .spawn(|| {
                enter(&path)?;
                // Kernels before 6.6 have no such list, and clsact alone.
                let listed = SchedClassifier::query_tcx("eth0", TcAttachType::Egress)
                    .map_or(0, |(_, programs)| programs.len());
                Ok(listed + egress_filters()?)
            })
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the thread panicked")))
    })
}

fn enter(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", path.display()))
}

fn egress_filters() -> Result<usize> {
    let output = Command::new("tc")
        .args(["filter", "show", "dev", "eth0", "egress"])
        .output()
        .context("run tc")?;
    if !output.status.success() {
        bail!("tc: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().count())
}
