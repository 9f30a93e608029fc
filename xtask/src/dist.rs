//! `cargo xtask build`: the programs as they go to a node, each one static file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use indicatif::HumanBytes;

use crate::{elf, process};

/// (package, program) of everything that goes to a node.
const PROGRAMS: [(&str, &str); 4] = [
    ("podmotion-shim", "containerd-shim-podmotion-v1"),
    ("podmotion-responder", "podmotion-responder"),
    ("podmotion-installer", "podmotion-installer"),
    CLI,
];

/// The one with manual pages and completions.
const CLI: (&str, &str) = ("podmotion-cli", "podmotion");

/// Builds the programs and returns the folder that they are in.
///
/// # Errors
/// When they do not compile or turn out to need a loader of the node.
pub fn run() -> Result<PathBuf> {
    let packages = PROGRAMS.map(|(package, _)| package);
    process::passthrough(&mut static_build(&packages)?)?;
    let release = release_dir()?;
    let dist = target_dir()?.join("dist");
    fs::create_dir_all(&dist).with_context(|| format!("cannot create {}", dist.display()))?;
    for (_, program) in PROGRAMS {
        let built = release.join(program);
        let copy = dist.join(program);
        // Renamed into place: a running program's file cannot be written to.
        let partial = dist.join(format!("{program}.partial"));
        fs::copy(&built, &partial).with_context(|| format!("cannot copy {}", built.display()))?;
        fs::rename(&partial, &copy).with_context(|| format!("cannot write {}", copy.display()))?;
        let loader = elf::interpreter(&copy)?;
        ensure!(
            loader.is_none(),
            "{} is not static: it asks for {loader:?}",
            copy.display()
        );
        let size = copy
            .metadata()
            .with_context(|| format!("cannot read {}", copy.display()))?
            .len();
        println!("{} {}", HumanBytes(size), copy.display());
    }
    share(&dist)?;
    Ok(dist)
}

/// The command that builds `packages` as static programs, in [`release_dir`].
///
/// # Errors
/// When the compiler does not say what it builds for.
pub fn static_build(packages: &[&str]) -> Result<Command> {
    let host = host_triple()?;
    // Named with --target, so that the flags stay away from build scripts and procedural macros, which cannot be static.
    let flags = format!(
        "target.{host}.rustflags=[\"-Ctarget-feature=+crt-static\",\"-Crelocation-model=static\"]"
    );
    let mut build = process::command(process::cargo());
    build.current_dir(crate::project_root()).args([
        "build",
        "--release",
        "--target",
        &host,
        "--config",
        &flags,
    ]);
    for package in packages {
        build.args(["--package", package]);
    }
    Ok(build)
}

/// Where [`static_build`] puts programs.
///
/// # Errors
/// When the compiler or cargo does not answer.
pub fn release_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join(host_triple()?).join("release"))
}

/// Has the command line write its manual pages and completions, in folders as below `/usr/share`.
fn share(dist: &Path) -> Result<()> {
    let share = dist.join("share");
    process::output(process::command(dist.join(CLI.1)).arg("share").arg(&share))?;
    println!("manual pages and completions {}", share.display());
    Ok(())
}

fn host_triple() -> Result<String> {
    let about = process::output(process::command("rustc").arg("-vV"))?;
    about
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc does not say what it builds for")
}

fn target_dir() -> Result<PathBuf> {
    let metadata = process::output(
        process::command(process::cargo())
            .current_dir(crate::project_root())
            .args(["metadata", "--format-version", "1", "--no-deps"]),
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let dir = metadata["target_directory"]
        .as_str()
        .context("cargo metadata has no target folder")?;
    Ok(PathBuf::from(dir))
}
