//! `podmotion`: what sleeps on this node, why something does not, and whether the node is fit for it.
//!
//! One file for each command. `ps`, `inspect`, `sleep`, `wake` and `watch` ask the shims themselves, each on its
//! own socket (`shims.rs`): there is no daemon in between, and a shim that does not answer costs the others
//! nothing. `check` and `gc` look at the node.
#![deny(unsafe_code)]

mod args;
mod check;
mod completion;
mod containerd;
mod exit;
mod gc;
mod inspect;
mod node;
mod ps;
mod request;
mod select;
mod shims;
mod watch;

use std::io;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use podmotion_proto::client::Verb;

use args::{Cli, Command};
use exit::Exit;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(exit) => exit.into(),
        // Whoever read the output has read enough.
        Err(error) if is_broken_pipe(&error) => Exit::Done.into(),
        Err(error) => {
            complain(&format!("{error:#}"));
            Exit::of(&error).into()
        }
    }
}

fn run(cli: &Cli) -> Result<Exit> {
    let global = &cli.global;
    match &cli.command {
        Command::Ps(args) => ps::run(global, args),
        Command::Inspect(args) => inspect::run(global, args),
        Command::Sleep(args) => request::run(global, args, Verb::Sleep),
        Command::Wake(args) => request::run(global, args, Verb::Wake),
        Command::Watch(args) => watch::run(global, args),
        Command::Check(args) => check::run(global, args),
        Command::Gc(args) => gc::run(global, args),
        Command::Completion(args) => completion::run(args),
        Command::Share(args) => completion::write(args),
        Command::SelfTestProcess => check::process::run(),
    }
}

/// One line on standard error.
fn complain(text: &str) {
    anstream::eprintln!("podmotion: {text}");
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
