//! `podmotion-installer`: puts Podmotion on a node and takes it off again.
#![forbid(unsafe_code)]

mod bpf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about = "Puts Podmotion on a node and takes it off again")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load the gate's BPF programs and pin them and their maps
    Bpf(bpf::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Bpf(arguments) => bpf::run(&arguments),
    }
}
