//! Running other programs: quietly while they succeed, with everything they said when they fail.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How much of a failed program's output is repeated in the error, in lines from the end.
const TAIL_LINES: usize = 30;

/// A command for `program`, with no terminal to ask questions on, and without what cargo gives the compiler's allocator
/// (`.cargo/config.toml`): programs under test can have the same one.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).env_remove("MALLOC_CONF");
    command
}

/// Runs `command` to its end and returns what it wrote to standard output.
///
/// # Errors
/// When it cannot be started or ends with anything but success; the error holds the end of both its streams.
pub fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    let output = command
        .output()
        .with_context(|| format!("cannot start {line}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{line}: {}\n{}{}",
            output.status,
            tail(&stdout),
            tail(&stderr)
        );
    }
    Ok(stdout)
}

/// Runs `command` with this program's own standard output and error.
///
/// # Errors
/// When it cannot be started or ends with anything but success.
pub fn passthrough(command: &mut Command) -> Result<()> {
    let line = describe(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start {line}"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// The cargo that runs us.
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Runs `command` to its end, however that is, and returns all that it wrote.
///
/// # Errors
/// When it cannot be started.
pub fn answer(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", describe(command)))?;
    Ok([output.stdout, output.stderr]
        .iter()
        .map(|stream| String::from_utf8_lossy(stream))
        .collect())
}

/// Where `program` is on the `PATH`, if it is.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// The command as one would type it, for messages only.
pub fn describe(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..]
        .iter()
        .flat_map(|line| ["    ", line, "\n"])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_the_command_and_repeats_its_output() {
        let error = output(command("ls").arg("/nonexistent-podmotion"))
            .expect_err("the folder does not exist")
            .to_string();
        assert!(error.contains("ls /nonexistent-podmotion"), "{error}");
        assert!(error.contains("cannot access"), "{error}");
    }
}
