//! `cargo xtask demo` and `cargo xtask bench`, on the harness that the tests use.

#![forbid(unsafe_code)]

mod bench;
mod demo;
mod listener;
mod numbers;
mod report;
mod stage;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use serde_json::Value;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Puts a container of a pod to sleep and wakes it, step by step.
    Demo {
        #[command(flatten)]
        output: Output,
        /// Leave everything up at the end until Ctrl-C.
        #[arg(long)]
        keep: bool,
    },
    /// Measures.
    Bench {
        #[command(flatten)]
        output: Output,
        /// Fewer rounds, less memory.
        #[arg(long)]
        quick: bool,
    },
}

#[derive(Args)]
struct Output {
    /// Write the figures to this file too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Output {
    /// Opened before anything else: later the process has a view of the file system of its own.
    fn open(&self) -> Result<Option<File>> {
        let open = |path: &PathBuf| {
            File::create(path).with_context(|| format!("cannot write {}", path.display()))
        };
        self.json.as_ref().map(open).transpose()
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether everything was as it has to be.
fn run(command: &Command) -> Result<bool> {
    let (Command::Demo { output, .. } | Command::Bench { output, .. }) = command;
    let mut file = output.open()?;
    let stage = stage::enter()?;
    let outcome = match command {
        Command::Demo { keep, .. } => demo::run(&stage, *keep),
        Command::Bench { quick, .. } => bench::run(*quick),
    };
    stage.leave()?;
    let (good, figures) = outcome?;
    write(file.as_mut(), &figures)?;
    Ok(good)
}

fn write(file: Option<&mut File>, figures: &Value) -> Result<()> {
    match file {
        Some(file) => writeln!(file, "{figures:#}").context("cannot write the figures"),
        None => Ok(()),
    }
}
