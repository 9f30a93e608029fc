//! Nodes that cannot have it.

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use podmotion_integration_tests::Node;

use super::node::{RESTART, Run, Source, dump, files, same};

/// Somebody restarts containerd, and it does not come up.
pub(super) fn rolled_back(node: &Node) -> Result<()> {
    let source = Source::small(node, "one")?;
    let config = || -> Result<String> {
        let path = node.folder().join("config.toml");
        std::fs::read_to_string(path).context("read containerd's configuration")
    };
    let (before, (_, settings)) = (config()?, dump(node)?);
    let mut run = Run::start(node, &source.install(), &["--restart-wait", "4"])?;
    let mut said = Vec::new();
    for line in &mut run.lines {
        let line = line.context("hear what the installer says")?;
        if line == RESTART {
            node.stop()?;
        } else if line.ends_with("config.toml: as before") {
            // All files are as before with the next line.
            said.push(line);
            continue;
        }
        said.push(line);
        if node.pid().is_none() && config()? == before {
            node.start_again()?;
        }
    }
    if node.pid().is_none() {
        node.start_again()?;
    }
    let output = run.child.wait_with_output().context("wait for it")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{said:?}");
    ensure!(errors.contains("has not come up within 4s"), "{errors}");
    ensure!(config()? == before, "{}", config()?);
    let (whole, rest) = dump(node)?;
    ensure!(
        rest == settings && !whole.contains("podmotion.v1"),
        "{whole}"
    );
    // Nothing keeps the next try.
    super::node::run(node, &source.install()).map(drop)
}

/// An immutable node: refused by the name of what cannot be written, before anything was.
pub(super) fn left_alone(node: &Node) -> Result<()> {
    let source = Source::small(node, "one")?;
    let before = files(node)?;
    node.within(|| {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(
            None::<&str>,
            "/opt/podmotion",
            None::<&str>,
            flags,
            None::<&str>,
        )
    })?
    .context("remount /opt/podmotion")?;
    let (said, output) = Run::start(node, &source.install(), &[])?.finish(node)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && said.is_empty(), "{said:?}");
    ensure!(
        errors.contains("this node cannot have Podmotion")
            && errors.contains("/opt/podmotion: it is on a file system that cannot be written to"),
        "{errors}"
    );
    same("refused", &before, &files(node)?)
}
