//! `kubectl`, as a user has it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::PATIENCE;
use crate::machine::run;
use crate::tools::Tools;

/// The command with a configuration.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    config: PathBuf,
}

impl Kubectl {
    pub(super) fn new(tools: &Tools, config: PathBuf) -> Result<Self> {
        Ok(Self {
            program: tools.cached("kubernetes/bin/kubectl")?,
            config,
        })
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The file that says where the API server is and who asks.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The command, for more arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(format!("--kubeconfig={}", self.config.display()));
        command
    }

    /// Runs it; its output. What it says when it fails is the error.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        run(self.command().args(arguments))
    }

    /// What there is, as JSON: `get` with these arguments.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["get", "--output=json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("read what get {arguments:?} says"))
    }

    /// Makes or changes what `manifest` describes.
    pub fn apply(&self, manifest: &Value) -> Result<()> {
        self.give(&["apply", "--filename=-"], manifest)
    }

    /// Posts `object` to a path of the API server.
    pub fn create_raw(&self, path: &str, object: &Value) -> Result<()> {
        self.give(&["create", "--raw", path, "--filename=-"], object)
    }

    fn give(&self, arguments: &[&str], object: &Value) -> Result<()> {
        let mut child = self
            .command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl has no input")?;
        stdin
            .write_all(object.to_string().as_bytes())
            .context("write to kubectl")?;
        drop(stdin);
        let output = child.wait_with_output().context("wait for kubectl")?;
        if !output.status.success() {
            bail!(
                "kubectl {arguments:?}: {}\n{object:#}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Waits until `condition` is true of `what`: `create`, `delete`, `condition=Ready`, a JSON path.
    pub fn wait(&self, what: &str, condition: &str) -> Result<()> {
        self.wait_for(PATIENCE, what, condition)
    }

    /// The same for what may take longer.
    pub fn wait_for(&self, patience: Duration, what: &str, condition: &str) -> Result<()> {
        self.run(&[
            "wait",
            &format!("--timeout={}s", patience.as_secs()),
            &format!("--for={condition}"),
            what,
        ])
        .map(drop)
    }
}
