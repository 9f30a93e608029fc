//! The tap is in the pod's network namespace, and stays there once a container of the pod has slept.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Exec, Node, Runtime};

use super::counter;
use crate::sleep::visit;

/// Sends as much as it can, and says for how long.
const FLOOD: &str = r#"
import socket, time
tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
tap.bind(("podmotion0", 0))
frame = bytes(60)
begun = time.monotonic()
while time.monotonic() < begun + 4:
    for _ in range(1000):
        try:
            tap.send(frame)
        except OSError:
            pass
print(time.monotonic() - begun)
"#;

/// A pod with the right to it is the master of its network: it finds the next sleep's tap as new.
pub(super) fn taken_away(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node)?;
    let address = container.address(8080)?;
    let netns = container.netns().context("no network namespace")?;
    for (round, change) in (1..).zip(["link delete podmotion0", "link set podmotion0 down"]) {
        container.sleep()?;
        container.wake()?;
        let mut ip = Command::new("ip");
        let ip = ip.args(["-n", netns.name()]).args(change.split(' '));
        let status = ip.status().context("run ip")?;
        ensure!(status.success(), "ip {change}: {status}");
        container.sleep()?;
        ensure!(visit(address)? == round);
        let status = container.sleeper().wait_whole()?;
        ensure!(status.counters.wakes == 2 * round, "{status:?}");
    }
    Ok(())
}

/// What a process has had of processors.
fn cpu_time(pid: i32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let ticks = |at| -> Result<u64> {
        let field = fields.split_whitespace().nth(at).context("too short")?;
        Ok(field.parse()?)
    };
    // Fields 14 and 15 of proc_pid_stat(5), in hundredths of a second on all of Linux.
    Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
}

pub(super) fn flooded(node: &Node, _: Runtime) -> Result<()> {
    let container = counter(node)?;
    container.sleep()?;
    container.wake()?;
    let shim = node.shim_of(container.id())?.pid;
    let before = cpu_time(shim)?;
    let (exit, output) = container.exec_output(&Exec::new(["python3", "-c", FLOOD]))?;
    ensure!(exit.status == 0, "{exit:?}: {output}");
    let took = Duration::from_secs_f64(output.trim().parse()?);
    let cost = cpu_time(shim)? - before;
    // A tenth, and what the exec itself costs.
    ensure!(cost < took / 5, "{cost:?} of {took:?}");
    container.sleep()?;
    ensure!(visit(container.address(8080)?)? == 1);
    Ok(())
}
