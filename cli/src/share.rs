//! What a package puts below `/usr/share`: manual pages and completions. `cargo xtask build` makes them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Command, ValueEnum};
use clap_complete::Shell as Completed;

/// A shell that has completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

impl Shell {
    const ALL: [Self; 3] = [Self::Bash, Self::Zsh, Self::Fish];

    /// Where it looks for the completions of `program`.
    fn place(self, program: &str) -> String {
        match self {
            Self::Bash => format!("bash-completion/completions/{program}"),
            Self::Zsh => format!("zsh/site-functions/_{program}"),
            Self::Fish => format!("fish/vendor_completions.d/{program}.fish"),
        }
    }
}

/// The completions of a command for a shell.
pub fn completions(shell: Shell, mut command: Command) -> Vec<u8> {
    let shell = match shell {
        Shell::Bash => Completed::Bash,
        Shell::Zsh => Completed::Zsh,
        Shell::Fish => Completed::Fish,
    };
    let program = command.get_name().to_owned();
    // Into memory first: the library panics where it cannot write.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, program, &mut text);
    text
}

/// Writes all of a command's.
///
/// # Errors
/// When a file cannot be written.
pub fn write(directory: &Path, command: &Command) -> Result<()> {
    let manual = directory.join("man/man1");
    create(&manual)?;
    clap_mangen::generate_to(command.clone(), &manual)
        .with_context(|| format!("write manual pages to {}", manual.display()))?;
    for shell in Shell::ALL {
        let path = directory.join(shell.place(command.get_name()));
        create(path.parent().unwrap_or(&path))?;
        fs::write(&path, completions(shell, command.clone()))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn pages_and_completions_are_where_they_are_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let hidden = Command::new("share").hide(true);
        let list = Command::new("ps").arg(Arg::new("namespace").long("namespace"));
        let command = Command::new("podmotion")
            .after_long_help("Exit codes")
            .subcommands([list, hidden]);
        write(dir.path(), &command).unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        assert!(read("man/man1/podmotion.1").contains("Exit codes"));
        assert!(read("man/man1/podmotion-ps.1").contains("namespace"));
        assert!(!dir.path().join("man/man1/podmotion-share.1").exists());
        for shell in Shell::ALL {
            let path = shell.place("podmotion");
            assert!(read(&path).contains("namespace"), "{path}");
        }
    }
}
