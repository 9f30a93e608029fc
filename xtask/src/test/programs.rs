//! The programs of tests: cargo builds all of them at once, and they are run without it.

use std::io::BufReader;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use cargo_metadata::{Artifact, Message, TargetKind};

use super::Surroundings;
use crate::{dist, process};

/// Of all tests: with one set of features everything is compiled once.
pub const FEATURES: [&str; 2] = [
    "--features",
    "podmotion-bpf/loader,podmotion-integration-tests/plot",
];

/// Tests of these names need neither root nor the tools of setup, as unit tests.
const FAST: [&str; 2] = ["config_example", "docs"];

/// A program of tests.
#[derive(Clone, Debug)]
pub struct Program {
    /// The package that it belongs to, and its name in there.
    pub name: String,
    /// Its name among the package's tests; of unit tests that of what they are in.
    pub target: String,
    /// It has unit tests, or tests that need as little.
    pub fast: bool,
    pub(super) path: PathBuf,
    /// The package's folder, in which cargo would run it.
    pub(super) folder: PathBuf,
}

/// All of them.
#[derive(Debug)]
pub struct Programs(pub Vec<Program>);

impl Programs {
    /// Builds them; without a product only the fast ones.
    ///
    /// # Errors
    /// When they do not compile.
    pub fn build(surroundings: &Surroundings) -> Result<Self> {
        let mut command = process::command(process::cargo());
        command
            .current_dir(crate::project_root())
            .args(["test", "--no-run", "--workspace"])
            .args(FEATURES)
            .args([
                "--message-format=json-render-diagnostics",
                "--lib",
                "--bins",
            ])
            .stdout(Stdio::piped());
        if surroundings.product.is_some() {
            // Named: those that only root can run are no part of a plain `cargo test`.
            command.args(["--test", "*"]);
        } else {
            command.args(FAST.iter().flat_map(|name| ["--test", name]));
        }
        let line = process::describe(&command);
        println!("test: {line}");
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {line}"))?;
        let output = child.stdout.take().context("cargo has no output")?;
        let mut programs = Vec::new();
        for message in Message::parse_stream(BufReader::new(output)) {
            if let Message::CompilerArtifact(artifact) =
                message.with_context(|| format!("cannot read what {line} says"))?
                && let Some(program) = program(artifact)?
            {
                programs.push(program);
            }
        }
        let status = child
            .wait()
            .with_context(|| format!("cannot wait for {line}"))?;
        ensure!(status.success(), "{line}: {status}");
        if surroundings.product.is_some() {
            all_there(&programs)?;
        }
        programs.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self(programs))
    }
}

impl Program {
    /// Runs it with `arguments`.
    pub fn command(&self, arguments: &[String]) -> Command {
        let mut command = process::command(&self.path);
        // As cargo does.
        command
            .current_dir(&self.folder)
            .env("CARGO", process::cargo())
            .env("CARGO_MANIFEST_DIR", &self.folder)
            .args(arguments);
        command
    }

    /// Names of its tests.
    ///
    /// # Errors
    /// When it does not say them.
    pub fn tests(&self) -> Result<Vec<String>> {
        let said = process::output(&mut self.command(&["--list".to_owned()]))?;
        let names = said.lines().filter_map(|line| line.strip_suffix(": test"));
        Ok(names.map(str::to_owned).collect())
    }
}

/// Each file of tests in the workspace has become a program.
fn all_there(programs: &[Program]) -> Result<()> {
    for package in &dist::workspace()?.packages {
        let folder = package.manifest_path.parent();
        let tests = package.targets.iter().filter(|target| target.is_test());
        for test in tests {
            let built = programs.iter().any(|program| {
                folder.is_some_and(|folder| program.folder == *folder)
                    && program.target == test.name
            });
            ensure!(
                built,
                "the tests {} of {} were not built",
                test.name,
                package.name
            );
        }
    }
    Ok(())
}

/// The program that an artifact is, if it is one of tests.
fn program(artifact: Artifact) -> Result<Option<Program>> {
    let Some(path) = artifact.executable.filter(|_| artifact.profile.test) else {
        return Ok(None);
    };
    let folder = artifact
        .manifest_path
        .parent()
        .with_context(|| format!("{} is in no folder", artifact.manifest_path))?;
    let package = folder.file_name().unwrap_or_default();
    let target = artifact.target;
    let is_test = target.kind.contains(&TargetKind::Test);
    Ok(Some(Program {
        name: format!("{package} {}", target.name),
        fast: !is_test || FAST.contains(&target.name.as_str()),
        target: target.name,
        path: path.into(),
        folder: folder.into(),
    }))
}
