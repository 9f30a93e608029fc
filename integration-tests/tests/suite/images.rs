//! The images that `cargo xtask image` makes, in each containerd.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use podmotion_integration_tests::{Node, Runtime, Versions};

use crate::trial;

pub(crate) const INSTALLER: &str = "podmotion-installer";
const MANAGER: &str = "podmotion-manager";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// One for each containerd: runc has no part in it.
pub(crate) fn trials() -> Vec<Trial> {
    let newest = Versions::default().runc;
    Versions::all()
        .filter(|versions| versions.runc == newest)
        .map(|versions| {
            trial(
                "images::import_and_run",
                import_and_run,
                Runtime::Runc,
                versions,
            )
        })
        .collect()
}

/// What is in an image runs there, the programs by themselves and CRIU with its own libraries.
fn import_and_run(node: &Node, _runtime: Runtime) -> Result<()> {
    let installer = import(node, INSTALLER)?;
    let manager = import(node, MANAGER)?;
    for (image, program) in [
        (&installer, INSTALLER),
        (&installer, "podmotion"),
        (&manager, MANAGER),
    ] {
        let said = run(node, image, &[program, "--version"])?;
        ensure!(said.contains(VERSION), "{program} says {said}");
    }
    let loader = match env::consts::ARCH {
        "aarch64" => "ld-linux-aarch64.so.1",
        _ => "ld-linux-x86-64.so.2",
    };
    let said = run(
        node,
        &installer,
        &[
            &format!("/podmotion/criu/lib/{loader}"),
            "--library-path",
            "/podmotion/criu/lib",
            "/podmotion/criu/bin/criu",
            "--version",
        ],
    )?;
    ensure!(said.contains("Version: 4.2"), "CRIU says {said}");
    for image in [installer, manager] {
        ctr(node, &["images", "rm", "--sync", &image])?;
    }
    Ok(())
}

/// Imports the image called `name` and returns the name that it has then.
pub(crate) fn import(node: &Node, name: &str) -> Result<String> {
    let before = images(node)?;
    let archive = archive(name)?;
    let archive = archive.to_str().context("a path in UTF-8")?;
    ctr(node, &["images", "import", archive])?;
    let mut new = images(node)?;
    // Of what is in its namespace containerd's CRI plugin makes one more, called by its digest.
    new.retain(|image| !before.contains(image) && !image.starts_with("sha256:"));
    ensure!(
        new.len() == 1 && new[0].ends_with(&format!(":{VERSION}")),
        "{archive} has brought {new:?}"
    );
    Ok(new.remove(0))
}

fn images(node: &Node) -> Result<Vec<String>> {
    let listed = ctr(node, &["images", "ls", "--quiet"])?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// Runs a program in a container of its own and returns what it says.
fn run(node: &Node, image: &str, args: &[&str]) -> Result<String> {
    let id = node.next_id();
    let mut all = vec!["run", "--rm", image, &id];
    all.extend(args);
    ctr(node, &all)
}

fn ctr(node: &Node, args: &[&str]) -> Result<String> {
    let output = node.ctr(args)?;
    ensure!(
        output.status.success(),
        "ctr {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The archive of this machine's architecture, in `$PODMOTION_IMAGES` or the checkout's `target/images`.
pub(crate) fn archive(name: &str) -> Result<PathBuf> {
    let dir = env::var_os("PODMOTION_IMAGES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/images"),
        PathBuf::from,
    );
    let arch = match env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let path = dir.join(format!("{name}-{VERSION}-{arch}.tar"));
    fs::metadata(&path).with_context(|| {
        format!(
            "{} is missing: `cargo xtask image --arch {arch}` makes it",
            path.display()
        )
    })?;
    Ok(path)
}
