//! `podmotion completion`.

use std::io::Write;

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell as Completed;

use crate::args::{Cli, CompletionArgs, Shell};
use crate::exit::Exit;

/// Prints the completions.
///
/// # Errors
/// When nothing can be printed.
pub fn run(args: &CompletionArgs) -> Result<Exit> {
    // Into memory first: the library panics where it cannot write.
    let text = text(args.shell);
    std::io::stdout().write_all(&text)?;
    Ok(Exit::Done)
}

/// The completions for a shell.
pub fn text(shell: Shell) -> Vec<u8> {
    let mut command = Cli::command();
    let mut text = Vec::new();
    let shell = match shell {
        Shell::Bash => Completed::Bash,
        Shell::Zsh => Completed::Zsh,
        Shell::Fish => Completed::Fish,
    };
    clap_complete::generate(shell, &mut command, "podmotion", &mut text);
    text
}
