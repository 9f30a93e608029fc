//! Checkpoints that were changed while the container sleeps: nobody ever runs on from one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Container, Node, Runtime};
use sha2::{Digest, Sha256};

use super::{counter, images_of};
use crate::sleep::visit;

const MANIFEST: &str = "manifest.json";

/// A container in deep sleep, and its checkpoint.
fn asleep(node: &Node) -> Result<(Container, PathBuf)> {
    let container = counter(node)?;
    ensure!(visit(container.address(8080)?)? == 1);
    container.sleep()?;
    let images = images_of(node, &container);
    ensure!(images.join(MANIFEST).exists(), "no checkpoint");
    Ok((container, images))
}

/// Its wake fails, it ends, and says for this reason.
fn ensure_ended(container: &Container, reason: &str) -> Result<()> {
    let Err(error) = container.wake() else {
        anyhow::bail!("it was woken");
    };
    ensure!(format!("{error:#}").contains(reason), "{error:#}");
    let exit = container.wait()?;
    ensure!(exit.status != 0, "{exit:?}");
    let status = container.status()?;
    ensure!(
        status.state == "stopped" && status.last_error.contains(reason),
        "{status:?}"
    );
    ensure!(
        status.counters.cold_starts == 0 && status.counters.wakes == 0,
        "{status:?}"
    );
    container.delete_task()?;
    Ok(())
}

pub(super) fn changed_manifest(node: &Node, _: Runtime) -> Result<()> {
    let (container, images) = asleep(node)?;
    let path = images.join(MANIFEST);
    let text = fs::read_to_string(&path)?;
    let changed = text.replacen("\"lazy\": false", "\"lazy\": true", 1);
    ensure!(changed != text, "{text}");
    fs::write(&path, changed)?;
    ensure_ended(&container, "manifest is damaged")
}

pub(super) fn leads_elsewhere(node: &Node, _: Runtime) -> Result<()> {
    for name in ["../../../../etc/passwd", "/etc/passwd", "..", "a\\u0000b"] {
        let (container, images) = asleep(node)?;
        let path = images.join(MANIFEST);
        let file = format!("\"files\":{{\"{name}\":{{\"size\":1,\"sha256\":null}},");
        let text = compact(&fs::read_to_string(&path)?);
        let changed = text.replacen("\"files\":{", &file, 1);
        ensure!(changed != text, "{text}");
        fs::write(&path, seal(&changed)?)?;
        ensure_ended(&container, "is not a plain file name").context(name)?;
    }
    Ok(())
}

pub(super) fn link(node: &Node, _: Runtime) -> Result<()> {
    let (container, images) = asleep(node)?;
    let elsewhere = node.folder().join("core.img");
    let core = first(&images, "core-")?;
    fs::copy(&core, &elsewhere)?;
    fs::remove_file(&core)?;
    symlink(&elsewhere, &core)?;
    ensure_ended(&container, " were written")
}

pub(super) fn foreign(node: &Node, _: Runtime) -> Result<()> {
    let (container, images) = asleep(node)?;
    fs::copy(first(&images, "core-")?, images.join("core-99.img"))?;
    ensure_ended(&container, "core-99.img is not in the manifest")
}

fn first(images: &Path, start: &str) -> Result<PathBuf> {
    let mut entries = fs::read_dir(images)?.flatten().map(|entry| entry.path());
    let found = entries.find(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy());
        name.is_some_and(|name| name.starts_with(start))
    });
    found.with_context(|| format!("no {start} in {}", images.display()))
}

/// JSON without the blanks between its parts.
fn compact(json: &str) -> String {
    let (mut text, mut inside, mut escaped) = (String::new(), false, false);
    for c in json.chars() {
        if inside {
            inside = c != '"' || escaped;
            escaped = c == '\\' && !escaped;
        } else if c.is_whitespace() {
            continue;
        } else {
            inside = c == '"';
        }
        text.push(c);
    }
    text
}

/// A changed document with the checksum that belongs to it, as who knows the format can make it.
fn seal(document: &str) -> Result<String> {
    let (head, manifest) = document
        .split_once("\"manifest\":")
        .context("no manifest in the document")?;
    let manifest = manifest
        .strip_suffix('}')
        .context("no end of the document")?;
    let format = 1_u32.to_le_bytes();
    let hash = Sha256::digest([&format[..], manifest.as_bytes()].concat());
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let (before, after) = head.split_once("\"checksum\":\"").context("no checksum")?;
    let rest = after.split_once('"').context("no end of the checksum")?.1;
    Ok(format!(
        "{before}\"checksum\":\"{hex}\"{rest}\"manifest\":{manifest}}}"
    ))
}
