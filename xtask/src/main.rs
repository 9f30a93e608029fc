//! Commands for working on Podmotion.
//!
//! `cargo xtask setup` brings every tool the other commands need into a cache, so that a machine with
//! nothing but cargo can build, test and measure.

#![forbid(unsafe_code)]

mod arch;
mod arm64;
mod check;
mod dist;
mod elf;
mod image;
mod process;
mod setup;
mod test;
mod workbench;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Commands for working on Podmotion.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring build packages, tools, test images and the virtual machine into the cache.
    Setup(setup::Args),
    /// Build the programs that go to a node into `target/dist`, each one static file.
    Build(dist::Args),
    /// Make images of installer and manager as OCI archives, with their SBOMs.
    Image(image::ImageArgs),
    /// Make the CRIU bundle of a node as a tar file.
    Bundle(image::BundleArgs),
    /// Try the programs on arm64: each under emulation, then all of them in an emulated machine.
    Arm64(arm64::Args),
    /// Check format, lints, generated files, licences and advisories.
    Check,
    /// Run the tests; the last line is `N passed, N failed`.
    Test(test::Args),
    /// See a container of a real containerd fall asleep and wake, step by step.
    Demo(workbench::DemoArgs),
    /// A Kubernetes that stays up, to try things with.
    Cluster {
        #[command(subcommand)]
        verb: workbench::ClusterVerb,
    },
    /// Measure, beside plain runc and containerd's own runtime.
    Bench(workbench::BenchArgs),
    /// Record a run with Prometheus, and draw the dashboard's panels from it.
    Panels(workbench::PanelsArgs),
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Setup(args) => setup::run(&args)?,
        Command::Build(args) => dist::run(&args)?,
        Command::Image(args) => image::run(&args)?,
        Command::Bundle(args) => image::bundle(&args)?,
        Command::Arm64(args) => arm64::run(&args)?,
        Command::Check => check::run()?,
        Command::Test(args) => return test::run(&args),
        Command::Demo(args) => match workbench::demo(&args)? {},
        Command::Cluster { verb } => match workbench::cluster(&verb)? {},
        Command::Bench(args) => match workbench::bench(&args)? {},
        Command::Panels(args) => match workbench::panels(&args)? {},
    }
    Ok(ExitCode::SUCCESS)
}

/// The checkout's top folder: of the cargo that runs us, else where we were compiled. The two differ where checkouts
/// share a target folder.
fn project_root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map_or(xtask.clone(), Path::to_owned)
}
