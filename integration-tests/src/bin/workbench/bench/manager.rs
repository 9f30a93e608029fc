//! The node's manager beside many that sleep.

use anyhow::{Context, Result};
use podmotion_integration_tests::{Manager, Node, status_number};

use super::figure::{Figure, Target};

/// Most that it may have in memory, in MB.
const RESIDENT_MB: f64 = 20.0;

/// What it has in memory once it knows all `shims` and was scraped.
pub(super) fn resident(node: &Node, shims: usize) -> Result<Figure> {
    let manager = Manager::start(node, &["--no-kubernetes"])?;
    manager.wait("all shims", |seen| {
        let known = seen.value("podmotion_shims", &[])?;
        let all = known == shims as f64;
        Ok((!all).then(|| anyhow::anyhow!("it knows {known} of {shims}")))
    })?;
    let kib = status_number(manager.pid()?, "VmRSS").context("the manager's memory")?;
    let mb = kib as f64 * 1024.0 / 1e6;
    let figure = Figure::new("the manager beside them, resident", "MB", mb);
    Ok(figure.target(Target::AtMost(RESIDENT_MB)))
}
