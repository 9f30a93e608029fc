//! The node's manager beside many that sleep.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podmotion_integration_tests::{Client, Node, PATIENCE, status_number};

use super::figure::{Figure, Target};

/// The port of its metrics, in the machine's own network.
const ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 17_999);
/// Most that it may have in memory, in MB.
const RESIDENT_MB: f64 = 20.0;

/// Ends it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What it has in memory once it knows all `shims` and was scraped.
pub(super) fn resident(node: &Node, shims: usize) -> Result<Figure> {
    let child = Command::new(node.tools().manager()?)
        .args(["--no-kubernetes", &format!("--metrics-address={ADDRESS}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start the manager")?;
    let running = Running(child);
    let wanted = format!("podmotion_shims {shims}\n");
    let deadline = Instant::now() + PATIENCE;
    // It tells nobody when it has heard of all of them.
    while !Client::default()
        .get(ADDRESS, "/metrics")
        .is_ok_and(|answer| answer.body.contains(&wanted))
    {
        if Instant::now() > deadline {
            bail!("the manager does not see {shims} shims");
        }
        thread::sleep(Duration::from_millis(50));
    }
    let pid = i32::try_from(running.0.id()).context("pid")?;
    let kib = status_number(pid, "VmRSS")?;
    let mb = kib as f64 * 1024.0 / 1e6;
    let figure = Figure::new("the manager beside them, resident", "MB", mb);
    Ok(figure.target(Target::AtMost(RESIDENT_MB)))
}
