//! `cargo xtask demo` and `cargo xtask bench`: setup, build, and then the program that does it, which uses
//! the tests' harness. It is a program of its own so that nothing else of xtask has to wait for its
//! compilation.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use crate::setup::{self, Cache};
use crate::{dist, process};

/// What both need of setup.
const NEEDS: &[&str] = &[
    "packages",
    "criu",
    "containerd-2",
    "runc-1.3",
    "cni",
    "pause-image",
    "apps-image",
];

/// What only the figures need.
const LOAD: &str = "wrk";

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub struct DemoArgs {
    /// Write the steps to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave everything up at the end until Ctrl-C, and say how to look around.
    #[arg(long)]
    keep: bool,
}

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct BenchArgs {
    /// Write the figures to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fewer rounds, less memory.
    #[arg(long)]
    quick: bool,
    /// Draw the figures, and put them into the project's pages.
    #[arg(long)]
    plot: bool,
}

/// Runs the demo in place of this program.
///
/// # Errors
/// When it cannot be prepared or started.
pub fn demo(args: &DemoArgs) -> Result<Infallible> {
    let flags: Vec<_> = args.keep.then_some("--keep").into_iter().collect();
    run("demo", NEEDS, args.json.as_ref(), &flags, &[])
}

/// Runs the benchmarks in place of this program.
///
/// # Errors
/// When they cannot be prepared or started.
pub fn bench(args: &BenchArgs) -> Result<Infallible> {
    let needs: Vec<&str> = NEEDS.iter().copied().chain([LOAD]).collect();
    let quick = args.quick.then_some("--quick");
    let plot = args.plot.then_some("--plot");
    let flags: Vec<_> = quick.into_iter().chain(plot).collect();
    let features: &[_] = if args.plot {
        &["--features", "plot"]
    } else {
        &[]
    };
    run("bench", &needs, args.json.as_ref(), &flags, features)
}

fn run(
    verb: &str,
    needs: &[&str],
    json: Option<&PathBuf>,
    flags: &[&str],
    features: &[&str],
) -> Result<Infallible> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "cargo xtask {verb} starts containers: run it as root"
    );
    setup::ensure(needs)?;
    let programs = dist::run()?;
    let mut command = process::command(process::cargo());
    command
        .args(["run", "--quiet", "--manifest-path"])
        .arg(crate::project_root().join("Cargo.toml"))
        .args(["--package", "podmotion-integration-tests"])
        .args(["--bin", "workbench"])
        .args(features)
        .args(["--", verb])
        .env("PODMOTION_CACHE", Cache::from_env()?.root())
        .env("PODMOTION_BIN", programs);
    if let Some(file) = json {
        command.arg("--json").arg(file);
    }
    command.args(flags);
    let line = process::describe(&command);
    println!("{verb}: {line}");
    // In its place: Ctrl-C is then its own, and it can clean up.
    Err(command.exec()).with_context(|| format!("cannot start {line}"))
}
