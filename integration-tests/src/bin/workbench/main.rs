//! `cargo xtask demo`, `bench`, `panels` and `cluster`, on the harness that the tests use.

#![forbid(unsafe_code)]

mod bench;
mod cluster;
mod demo;
mod listener;
mod numbers;
#[cfg(feature = "plot")]
mod panels;
#[cfg(feature = "plot")]
mod plot;
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
        /// Draw the figures, and put them into the project's pages.
        #[cfg(feature = "plot")]
        #[arg(long)]
        plot: bool,
    },
    /// A Kubernetes that stays up.
    Cluster {
        #[command(subcommand)]
        verb: cluster::Verb,
    },
    /// Draws what an earlier run has written with `--json`, and puts it into the project's pages.
    #[cfg(feature = "plot")]
    Plot { file: PathBuf },
    /// Records a run with Prometheus, and draws the dashboard's panels from it.
    #[cfg(feature = "plot")]
    Panels {
        #[command(flatten)]
        output: Output,
        /// Record nothing: draw what an earlier run has written with `--json`.
        #[arg(long, value_name = "FILE", conflicts_with = "json")]
        draw: Option<PathBuf>,
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
    match command {
        Command::Demo { output, keep } => {
            on_stage(output, |stage| demo::run(stage, *keep)).map(|(good, _)| good)
        }
        #[cfg(not(feature = "plot"))]
        Command::Bench { output, quick } => {
            on_stage(output, |_| bench::run(*quick)).map(|(good, _)| good)
        }
        #[cfg(feature = "plot")]
        Command::Bench {
            output,
            quick,
            plot,
        } => {
            let pages = plot.then(plot::Pages::open).transpose()?;
            let (good, figures) = on_stage(output, |_| bench::run(*quick))?;
            // Pages have all figures of one run, or those of an earlier one.
            if let Some(pages) = pages.filter(|_| good) {
                pages.show(&figures)?;
            }
            Ok(good)
        }
        Command::Cluster { verb } => cluster::run(verb),
        #[cfg(feature = "plot")]
        Command::Plot { file } => {
            plot::Pages::open()?.show(&read(file)?)?;
            Ok(true)
        }
        #[cfg(feature = "plot")]
        Command::Panels { output, draw } => {
            let picture = panels::Picture::open()?;
            let recorded = match draw {
                Some(file) => read(file)?,
                None => on_stage(output, |_| panels::record())?.1,
            };
            picture.show(&recorded)?;
            Ok(true)
        }
    }
}

/// What an earlier run has written.
#[cfg(feature = "plot")]
fn read(file: &std::path::Path) -> Result<Value> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("cannot parse {}", file.display()))
}

/// Runs something on a machine of its own and writes its figures.
fn on_stage(
    output: &Output,
    work: impl FnOnce(&stage::Stage) -> Result<(bool, Value)>,
) -> Result<(bool, Value)> {
    let mut file = output.open()?;
    let stage = stage::enter()?;
    let outcome = work(&stage);
    stage.leave()?;
    let (good, figures) = outcome?;
    write(file.as_mut(), &figures)?;
    Ok((good, figures))
}

fn write(file: Option<&mut File>, figures: &Value) -> Result<()> {
    match file {
        Some(file) => writeln!(file, "{figures:#}").context("cannot write the figures"),
        None => Ok(()),
    }
}
