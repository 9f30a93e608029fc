//! `podmotion-installer`: puts Podmotion on a node and takes it off again.
#![forbid(unsafe_code)]

mod args;
mod bpf;
mod containerd;
mod cri;
mod daemon;
mod files;
mod host;
mod install;
mod kernel;
mod node;
mod plan;
mod record;
mod restart;
mod runtime_class;
mod shims;
mod uninstall;
mod versions;

use anyhow::Context;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about = "Puts Podmotion on a node and takes it off again")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put it on the node, or bring what is there up to date
    Install(args::Install),
    /// Take it off the node: what sleeps is woken, and everything is as it was
    Uninstall(args::Node),
    /// Load the gate's BPF programs and pin them and their maps
    Bpf(bpf::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Install(arguments) => wait(install::run(&arguments)),
        Command::Uninstall(arguments) => wait(uninstall::run(&arguments)),
        Command::Bpf(arguments) => bpf::run(&arguments),
    }
}

fn wait(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?
        .block_on(work)
}
