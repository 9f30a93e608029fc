//! `kubectl podmotion`: what sleeps in a cluster, why something does not, and sleep and wake on request.
//!
//! ```text
//!   1. list the managers' pods      user ──> API server
//!   2. token of a service account   user ──> API server       one audience, ten minutes
//!   3. ask each manager             user ──> API server ── pods/proxy ──> manager: who has the token, what may he do
//! ```
//!
//! The user's own credentials go to the API server alone. A node that does not answer costs the others
//! nothing.
#![forbid(unsafe_code)]

mod args;
mod ask;
mod check;
mod cluster;
mod complete;
mod exit;
mod list;
mod output;
mod pods;
mod request;
mod token;
mod why;

use std::io;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use podmotion_proto::client::Verb;

use args::{Cli, Command};
use cluster::Cluster;
use exit::Exit;

fn main() -> ExitCode {
    if let Some(words) = complete::asked() {
        return complete::run(&words).into();
    }
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
    match &cli.command {
        Command::Completion(args) => return complete::print(args),
        Command::Share(args) => return complete::write(args),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.context("start the event loop")?.block_on(async {
        let cluster = Cluster::connect(&cli.global).await?;
        match &cli.command {
            Command::Ps(args) => list::run(&cluster, args).await,
            Command::Sleep(args) => request::run(&cluster, args, Verb::Sleep).await,
            Command::Wake(args) => request::run(&cluster, args, Verb::Wake).await,
            Command::Why(args) => why::run(&cluster, args).await,
            Command::Check(args) => check::run(&cluster, args).await,
            Command::Completion(_) | Command::Share(_) => Ok(Exit::Done),
        }
    })
}

/// One line on standard error.
fn complain(text: &str) {
    anstream::eprintln!("kubectl podmotion: {text}");
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
