//! The link between the network of whoever asks for a cluster and the machine's.
//!
//! ```text
//!   caller: podmotion0, 10.77.0.254 ── veth ── caller0 on kube0, 10.77.0.1 :machine
//! ```

use std::process::Command;

use anyhow::{Context, Result, bail};

/// The caller's end.
const DEVICE: &str = "podmotion0";
/// The machine's.
const INSIDE: &str = "caller0";

/// Makes it, from within the machine, to the network of process `pid`.
pub fn create(pid: u32) -> Result<()> {
    ip(&format!(
        "link add {INSIDE} type veth peer name {DEVICE} netns {pid}"
    ))?;
    ip(&format!("link set {INSIDE} master kube0 up"))
}

/// Gives the caller's end its address, and the way to the pods.
pub fn connect() -> Result<()> {
    ip(&format!("address add 10.77.0.254/24 dev {DEVICE}"))?;
    ip(&format!("link set {DEVICE} up"))?;
    ip("route add 10.79.0.0/16 via 10.77.0.1")
}

/// Removes it, if it is there. It goes with the machine's network too, but some time after that.
pub fn remove() -> Result<()> {
    match ip(&format!("link delete {DEVICE}")) {
        Err(error) if !format!("{error:#}").contains("Cannot find device") => Err(error),
        _ => Ok(()),
    }
}

fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("run ip")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip {arguments}: {}", said.trim());
    }
    Ok(())
}
