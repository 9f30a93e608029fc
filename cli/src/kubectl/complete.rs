//! Completions: a shell's own for `kubectl-podmotion`, and what kubectl asks for itself.
//!
//! kubectl runs `kubectl_complete-podmotion` with the words so far, the last of them unfinished, and
//! expects a candidate on each line and a line with a directive.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use clap::{Arg, Command, CommandFactory};
use podmotion_cli::share;

use crate::args::{Cli, CompletionArgs, ShareArgs};
use crate::exit::Exit;

/// The name by which kubectl looks for who completes.
const NAME: &str = "kubectl_complete-podmotion";

/// To kubectl: these are all, no names of files.
const NO_FILES: &str = ":4";

/// The words, where kubectl asks.
pub fn asked() -> Option<Vec<String>> {
    let mut words = std::env::args();
    let program = words.next()?;
    let name = Path::new(&program).file_name();
    (name == Some(OsStr::new(NAME))).then(|| words.collect())
}

/// Answers kubectl.
pub fn run(words: &[String]) -> Exit {
    let lines: String = candidates(words)
        .into_iter()
        .map(|candidate| candidate + "\n")
        .collect();
    let written = writeln!(std::io::stdout(), "{lines}{NO_FILES}");
    match written {
        Ok(()) => Exit::Done,
        Err(_) => Exit::Failed,
    }
}

/// Prints the completions.
///
/// # Errors
/// When nothing can be printed.
pub fn print(args: &CompletionArgs) -> Result<Exit> {
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

/// What the last of the words can become: commands, options, values of options.
fn candidates(words: &[String]) -> Vec<String> {
    let mut root = Cli::command();
    root.build();
    let (last, before) = match words.split_last() {
        Some((last, before)) => (last.as_str(), before),
        None => ("", &[][..]),
    };
    let command = before.iter().find_map(|word| root.find_subcommand(word));
    let in_use = command.unwrap_or(&root);
    let value_of = before.last().and_then(|word| option(in_use, word));
    let all: Vec<String> = match value_of {
        Some(option) => option
            .get_possible_values()
            .iter()
            .map(|value| value.get_name().to_owned())
            .collect(),
        None if last.starts_with('-') => options(in_use),
        None if command.is_none() => commands(&root),
        None => Vec::new(),
    };
    let fits = |candidate: &String| candidate.starts_with(last);
    all.into_iter().filter(fits).collect()
}

/// The option that `word` is, if a value comes after it.
fn option<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let is_it = |arg: &&Arg| {
        let long = arg.get_long().map(|long| format!("--{long}"));
        let short = arg.get_short().map(|short| format!("-{short}"));
        long.as_deref() == Some(word) || short.as_deref() == Some(word)
    };
    let mut options = command
        .get_arguments()
        .filter(|arg| arg.get_action().takes_values());
    options.find(is_it)
}

fn options(command: &Command) -> Vec<String> {
    let long = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let long = long.filter_map(|arg| arg.get_long());
    let mut all: Vec<String> = long.map(|long| format!("--{long}")).collect();
    all.sort_unstable();
    all
}

fn commands(root: &Command) -> Vec<String> {
    let shown = root.get_subcommands().filter(|one| !one.is_hide_set());
    shown.map(|one| one.get_name().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(words: &str) -> Vec<String> {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        candidates(&words)
    }

    #[test]
    fn commands_options_and_their_values_are_completed() {
        assert_eq!(complete("w"), ["wake", "why"]);
        assert!(complete("").contains(&"ps".to_owned()));
        assert!(!complete("").contains(&"share".to_owned()));
        assert_eq!(complete("ps --all"), ["--all-namespaces"]);
        assert_eq!(complete("ps --namesp"), ["--namespace"]);
        assert_eq!(complete("ps -o "), ["table", "wide", "json", "yaml"]);
        assert_eq!(complete("sleep cart --output j"), ["json"]);
        assert!(complete("why ca").is_empty());
        assert!(complete("ps -n ").is_empty());
    }
}
