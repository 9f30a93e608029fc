//! `podmotion-installer uninstall`: everything is as it was before, but for logs. What sleeps is woken first;
//! pods go on, awake, with programs that are no longer there.
//!
//! Each step can be done again. The record goes last: a run that was interrupted is made good by the next.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context, Result};
use podmotion_bpf::loader::unpin;

use crate::args;
use crate::cri::About;
use crate::files;
use crate::node::Node;
use crate::plan::FOLDER;
use crate::record::{self, Changed, Record};
use crate::{runtime_class, shims};

/// Sockets of the shims, and where CRIU works.
const RUN: &str = "/run/podmotion";
/// Checkpoints.
const STATE: &str = "/var/lib/podmotion";

/// Removes everything.
///
/// # Errors
/// When a step fails; those before are done.
pub async fn run(args: &args::Node) -> Result<()> {
    let node = Node::new(args);
    let Some(record) = node.record()? else {
        files::remove(&files::staging(&node.at(record::PATH)?))?;
        files::remove_empty(&node.at(FOLDER)?)?;
        println!("node {}: nothing is installed", args.node_name);
        return Ok(());
    };
    // The configuration that says where they are is given back before the second look.
    let sockets = node.sockets()?;
    println!("wake what sleeps");
    wake(&sockets).await?;
    forget_runtime(&node, &record).await?;
    // What was made meanwhile knows nothing of it. containerd makes none any more.
    wake(&sockets).await?;
    if let Some(name) = args.class()
        && runtime_class::remove(name).await?
    {
        println!("RuntimeClass {name}: removed");
    }
    let pins = node.pins()?;
    for name in unpin(&pins)? {
        println!("{}/{name}: removed", podmotion_bpf::DEFAULT_PIN_DIR);
    }
    for folder in [RUN, STATE] {
        let whole = node.at(folder)?;
        println!("remove {folder}");
        empty(&whole, None)?;
    }
    for link in &record.links {
        let seen = node.link_at(link)?;
        files::remove(&files::staging(&seen))?;
        if files::remove(&seen)? {
            println!("{}: removed", link.display());
        }
    }
    let folder = node.at(FOLDER)?;
    println!("remove {FOLDER}");
    let record_at = node.at(record::PATH)?;
    empty(&folder, record_at.file_name())?;
    // Inner ones first.
    for directory in record.directories.iter().rev() {
        files::remove_empty(&node.at(directory)?)?;
    }
    files::remove(&record_at)?;
    files::remove_empty(&folder)?;
    println!("node {}: uninstalled", args.node_name);
    Ok(())
}

/// Has every container wake and stay awake.
async fn wake(sockets: &Path) -> Result<()> {
    let woken = shims::keep_awake(sockets).await;
    for name in woken.context("some containers do not wake: no image was removed")? {
        println!("{name}: awake");
    }
    Ok(())
}

/// Gives containerd's files back and has it restarted, while the shim that it may still ask is there.
async fn forget_runtime(node: &Node, record: &Record) -> Result<()> {
    let (daemon, about) = node.containerd().await?;
    // The last one first: what is imported goes after what imports it.
    for changed in record.files.iter().rev() {
        give_back(node, changed)?;
    }
    if about.effective.has_ours() {
        let gone = |about: &About| !about.effective.has_ours();
        let unit = node.unit(&daemon).await?;
        node.restart(unit.as_deref(), gone).await?;
    }
    println!("containerd runs without the runtime");
    Ok(())
}

/// The file is as it was: byte for byte if nobody has changed it since; else only ours is taken out.
fn give_back(node: &Node, changed: &Changed) -> Result<()> {
    let path = node.at(&changed.path)?;
    files::remove(&files::staging(&path))?;
    let Some(now) = files::read(&path)? else {
        return Ok(());
    };
    let before = if now == changed.written {
        changed.original.clone()
    } else if Some(&now) == changed.original.as_ref() {
        return Ok(());
    } else {
        Some(Node::without_ours(&now)).filter(|text| !text.is_empty())
    };
    match before {
        Some(text) => files::write(&path, &text, 0o644)?,
        None => drop(files::remove(&path)?),
    }
    println!("{}: as before", changed.path.display());
    Ok(())
}

/// Removes all that is in the directory, but for what is called `kept`.
fn empty(directory: &Path, kept: Option<&OsStr>) -> Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).with_context(|| format!("list {}", directory.display()));
        }
    };
    for entry in entries {
        let path = entry
            .with_context(|| format!("list {}", directory.display()))?
            .path();
        if path.file_name() == kept {
            continue;
        }
        if path.is_dir() && !path.is_symlink() {
            files::remove_tree(&path)?;
        } else {
            files::remove(&path)?;
        }
    }
    Ok(())
}
