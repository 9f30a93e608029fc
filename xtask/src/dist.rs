//! `cargo xtask build`: the programs as they go to a node or to a user, each one static file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Metadata, MetadataCommand};
use indicatif::HumanBytes;

use crate::arch::Arch;
use crate::{elf, process, setup};

/// Arguments of `cargo xtask build`.
#[derive(clap::Args)]
pub struct Args {
    /// Architecture to build for, this machine's unless told otherwise.
    #[arg(long)]
    arch: Option<Arch>,
}

/// (package, program) of everything that goes to a node, and kubectl's plugin.
pub const PROGRAMS: [(&str, &str); 7] = [
    ("podmotion-shim", "containerd-shim-podmotion-v1"),
    ("podmotion-responder", "podmotion-responder"),
    ("podmotion-installer", "podmotion-installer"),
    ("podmotion-manager", "podmotion-manager"),
    ("podmotion-self-test", "podmotion-self-test-app"),
    CLI,
    KUBECTL,
];

/// Those with manual pages and completions.
const CLI: (&str, &str) = ("podmotion-cli", "podmotion");
const KUBECTL: (&str, &str) = ("podmotion-cli", "kubectl-podmotion");

/// Runs the command.
///
/// # Errors
/// When the programs do not compile or turn out to need a loader of the node.
pub fn run(args: &Args) -> Result<()> {
    let arch = args.arch.map_or_else(Arch::host, Ok)?;
    build(arch).map(drop)
}

/// Builds the programs for `arch` and returns the folder that they are in.
///
/// # Errors
/// When they do not compile or turn out to need a loader of the node.
pub fn build(arch: Arch) -> Result<PathBuf> {
    if arch != Arch::host()? {
        setup::ensure(&[setup::CROSS])?;
    }
    let packages = PROGRAMS.map(|(package, _)| package);
    process::passthrough(&mut static_build(&packages, arch)?)?;
    let release = release_dir(arch)?;
    let dist = dir(arch)?;
    fs::create_dir_all(&dist).with_context(|| format!("cannot create {}", dist.display()))?;
    for (_, program) in PROGRAMS {
        let built = release.join(program);
        let copy = dist.join(program);
        // Renamed into place: a running program's file cannot be written to.
        let partial = dist.join(format!("{program}.partial"));
        fs::copy(&built, &partial).with_context(|| format!("cannot copy {}", built.display()))?;
        fs::rename(&partial, &copy).with_context(|| format!("cannot write {}", copy.display()))?;
        elf::check_machine(&copy, arch)?;
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
    if arch == Arch::host()? {
        share(&dist)?;
    }
    Ok(dist)
}

/// The command that fails if the programs do not compile for `arch`: types of the C library differ between architectures.
///
/// # Errors
/// When there is no compiler for it.
pub fn check(arch: Arch) -> Result<Command> {
    setup::ensure(&[setup::CROSS])?;
    let mut check = process::command(process::cargo());
    check.current_dir(crate::project_root()).args([
        "check",
        "--quiet",
        "--locked",
        "--target",
        arch.triple(),
    ]);
    for (package, _) in PROGRAMS {
        check.args(["--package", package]);
    }
    Ok(check)
}

/// Where [`build`] puts the programs for `arch`.
///
/// # Errors
/// When cargo does not answer.
pub fn dir(arch: Arch) -> Result<PathBuf> {
    let target = target_dir()?;
    Ok(if arch == Arch::host()? {
        target.join("dist")
    } else {
        target.join(format!("dist-{}", arch.name()))
    })
}

/// The command that builds `packages` as static programs for `arch`, in [`release_dir`]. The same sources make the same
/// programs, wherever the checkout and cargo's folders are.
///
/// # Errors
/// When cargo or the compiler does not answer.
pub fn static_build(packages: &[&str], arch: Arch) -> Result<Command> {
    let triple = arch.triple();
    let mut flags = vec![
        "-Ctarget-feature=+crt-static".to_owned(),
        "-Crelocation-model=static".to_owned(),
    ];
    flags.extend(path_flags(&metadata()?)?);
    let mut build = process::command(process::cargo());
    // Named with --target, so that the flags stay away from build scripts and procedural macros, which cannot be static.
    build.current_dir(crate::project_root()).args([
        "build",
        "--release",
        "--locked",
        "--target",
        triple,
        "--config",
        // JSON's strings are TOML's too.
        &format!(
            "target.{triple}.rustflags={}",
            serde_json::to_string(&flags)?
        ),
    ]);
    if arch != Arch::host()? {
        let linker = arch.cross_compiler();
        build.args(["--config", &format!("target.{triple}.linker={linker:?}")]);
    }
    for package in packages {
        build.args(["--package", package]);
    }
    Ok(build)
}

/// Where [`static_build`] puts programs.
///
/// # Errors
/// When cargo does not answer.
pub fn release_dir(arch: Arch) -> Result<PathBuf> {
    Ok(target_dir()?.join(arch.triple()).join("release"))
}

/// Compiler flags that keep this machine's folders out of programs: a panic tells the source file that it is in. Those of
/// the workspace itself are relative already.
fn path_flags(metadata: &Metadata) -> Result<Vec<String>> {
    let sysroot = process::output(process::command("rustc").args(["--print", "sysroot"]))?;
    let version = process::output(process::command("rustc").arg("-vV"))?;
    let commit = version
        .lines()
        .find_map(|line| line.strip_prefix("commit-hash: "))
        .context("rustc does not say what commit it is of")?;
    let mut folders = BTreeSet::new();
    for package in metadata.packages.iter().filter(|it| it.source.is_some()) {
        let folder = package.manifest_path.parent().and_then(|dir| dir.parent());
        folders.extend(folder.map(|folder| (folder.to_string(), "/cargo".to_owned())));
    }
    folders.insert((metadata.target_directory.to_string(), "/target".to_owned()));
    // Without the sources of the standard library the compiler says this by itself.
    folders.insert((
        format!("{}/lib/rustlib/src/rust", sysroot.trim()),
        format!("/rustc/{commit}"),
    ));
    Ok(folders
        .into_iter()
        .map(|(from, to)| format!("--remap-path-prefix={from}={to}"))
        .collect())
}

/// Has the command lines write their manual pages and completions, in folders as below `/usr/share`.
fn share(dist: &Path) -> Result<()> {
    let share = dist.join("share");
    for (_, program) in [CLI, KUBECTL] {
        process::output(
            process::command(dist.join(program))
                .arg("share")
                .arg(&share),
        )?;
    }
    println!("manual pages and completions {}", share.display());
    Ok(())
}

/// What cargo knows of the workspace and of everything that it is built from.
///
/// # Errors
/// When cargo does not answer.
pub fn metadata() -> Result<Metadata> {
    let mut options = vec!["--locked".to_owned()];
    for arch in Arch::ALL {
        options.extend(["--filter-platform".to_owned(), arch.triple().to_owned()]);
    }
    MetadataCommand::new()
        .cargo_path(process::cargo())
        .current_dir(crate::project_root())
        .other_options(options)
        .exec()
        .context("cannot ask cargo about the workspace")
}

/// The folder that cargo builds in.
///
/// # Errors
/// When cargo does not answer.
pub fn target_dir() -> Result<PathBuf> {
    Ok(workspace()?.target_directory.into_std_path_buf())
}

/// What cargo knows of the workspace alone.
///
/// # Errors
/// When cargo does not answer.
pub fn workspace() -> Result<Metadata> {
    MetadataCommand::new()
        .cargo_path(process::cargo())
        .current_dir(crate::project_root())
        .no_deps()
        .exec()
        .context("cannot ask cargo about the workspace alone")
}
