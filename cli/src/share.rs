//! What a package puts below `/usr/share`: manual pages and completions. `cargo xtask build` makes them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::{Cli, ShareArgs, Shell};
use crate::completion;
use crate::exit::Exit;

/// Where each shell looks for a command's completions.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/podmotion"),
    (Shell::Zsh, "zsh/site-functions/_podmotion"),
    (Shell::Fish, "fish/vendor_completions.d/podmotion.fish"),
];

/// Writes all of it.
///
/// # Errors
/// When a file cannot be written.
pub fn run(args: &ShareArgs) -> Result<Exit> {
    let manual = args.directory.join("man/man1");
    create(&manual)?;
    clap_mangen::generate_to(Cli::command(), &manual)
        .with_context(|| format!("write manual pages to {}", manual.display()))?;
    for (shell, path) in COMPLETIONS {
        write(&args.directory.join(path), &completion::text(shell))?;
    }
    Ok(Exit::Done)
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

fn write(path: &Path, text: &[u8]) -> Result<()> {
    create(path.parent().unwrap_or(path))?;
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_completions_are_where_they_are_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let directory = dir.path().to_owned();
        run(&ShareArgs { directory }).unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        assert!(read("man/man1/podmotion.1").contains("Exit codes"));
        assert!(read("man/man1/podmotion-ps.1").contains("namespace"));
        assert!(!dir.path().join("man/man1/podmotion-share.1").exists());
        for (_, path) in COMPLETIONS {
            assert!(read(path).contains("self-test"), "{path}");
        }
    }
}
