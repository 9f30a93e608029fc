//! What lies on the node: configuration, directory of the checkpoints, runc.

use std::path::Path;
use std::process::Command;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use podmotion_cli::human;

use super::{Context, Verdict};

/// The least room for checkpoints that is worth having.
const LEAST_ROOM: u64 = 1 << 30;

/// The file is valid, or not there.
pub fn configuration(context: &Context<'_>) -> Result<Verdict, Verdict> {
    let path = &context.global.config;
    Ok(match crate::node::read(path) {
        Ok(_) if path.exists() => Verdict::ok(path.display().to_string()),
        Ok(_) => Verdict::ok(format!(
            "there is no {}: everything has its default",
            path.display()
        )),
        Err(error) => Verdict::failed(
            format!("{error:#}"),
            "correct the file: no container can be created with it",
        ),
    })
}

/// The directory for checkpoints, or where it would be made, is on a disk with room.
pub fn checkpoints(context: &Context<'_>) -> Result<Verdict, Verdict> {
    let directory = context.config()?.checkpoint.directory;
    let there = directory.ancestors().find(|path| path.exists());
    let there = there.unwrap_or(Path::new("/"));
    let about = match statfs(there) {
        Ok(about) => about,
        Err(error) => {
            return Ok(Verdict::failed(
                format!("look at {}: {error}", there.display()),
                "make the directory, or name another: checkpoint.directory",
            ));
        }
    };
    let free = about.blocks_available() * u64::try_from(about.block_size()).unwrap_or(0);
    let what = format!("{}, {} free", directory.display(), human::bytes(free));
    if about.filesystem_type() == TMPFS_MAGIC {
        return Ok(Verdict::warning(
            format!("{what}, but in memory: nothing is freed by a sleep"),
            "put it on a disk: checkpoint.directory",
        ));
    }
    if free < LEAST_ROOM {
        return Ok(Verdict::warning(
            what,
            "make room: a container sleeps only where its memory fits on the disk",
        ));
    }
    Ok(Verdict::ok(what))
}

/// runc runs.
pub fn runc(context: &Context<'_>) -> Result<Verdict, Verdict> {
    let runc = context.config()?.runc.binary;
    let path: &Path = runc.as_ref();
    Ok(match Command::new(path).arg("--version").output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Verdict::ok(text.lines().next().unwrap_or_default().to_owned())
        }
        Ok(output) => Verdict::failed(
            format!("{} --version: {}", path.display(), output.status),
            "install runc, or say where it is: runc.binary",
        ),
        Err(error) => Verdict::failed(
            format!("{}: {error}", path.display()),
            "install runc, or say where it is: runc.binary",
        ),
    })
}
