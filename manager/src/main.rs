//! `podmotion-manager`: shows a cluster what sleeps on a node.
#![forbid(unsafe_code)]

use clap::Parser;

/// Shows a cluster what sleeps on a node.
#[derive(Parser)]
#[command(version)]
struct Arguments {}

fn main() -> anyhow::Result<()> {
    let _arguments = Arguments::parse();
    Ok(())
}
