//! Commands for working on Podmotion.
//!
//! `cargo xtask setup` brings every tool the other commands need into a cache, so that a machine with
//! nothing but cargo can build, test and measure.

#![forbid(unsafe_code)]

mod process;
mod setup;

use std::path::Path;

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
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
    }
}

/// The checkout's top folder.
fn project_root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}
