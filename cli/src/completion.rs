//! `podmotion completion` and `podmotion share`.

use std::io::Write;

use anyhow::Result;
use clap::CommandFactory;
use podmotion_cli::share;

use crate::args::{Cli, CompletionArgs, ShareArgs};
use crate::exit::Exit;

/// Prints the completions.
///
/// # Errors
/// When nothing can be printed.
pub fn run(args: &CompletionArgs) -> Result<Exit> {
    let text = share::completions(args.shell, Cli::command());
    std::io::stdout().write_all(&text)?;
    Ok(Exit::Done)
}

/// Writes manual pages and completions below a directory.
///
/// # Errors
/// When a file cannot be written.
pub fn write(args: &ShareArgs) -> Result<Exit> {
    share::write(&args.directory, &Cli::command())?;
    Ok(Exit::Done)
}
