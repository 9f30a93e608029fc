//! `kubectl` beside a test, with its output read as it comes.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Cluster, KubePod};

use super::counter::PORT;

/// Waits until a container of our own servers answers requests. Without a probe ready means started.
pub(super) fn wait_listening(cluster: &Cluster, pod: &KubePod<'_>, container: &str) -> Result<()> {
    Piped::start(cluster, &["logs", "--follow", pod.name(), "-c", container])?.wait_for("listening")
}

/// Forwards to the counter of a pod, for as long as the first of the result is there, from the second.
pub(super) fn forward(cluster: &Cluster, pod: &KubePod<'_>) -> Result<(Piped, SocketAddr)> {
    let target = format!("pod/{}", pod.name());
    let mut forward = Piped::start(cluster, &["port-forward", &target, &format!(":{PORT}")])?;
    // Forwarding from 127.0.0.1:41234 -> 8080
    let said = forward.read_line()?;
    let address = said
        .split_ascii_whitespace()
        .find_map(|word| word.parse().ok())
        .with_context(|| format!("no address in {said:?}"))?;
    Ok((forward, address))
}

/// A `kubectl` that runs beside the test and is ended with this.
pub(super) struct Piped {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Piped {
    pub(super) fn start(cluster: &Cluster, arguments: &[&str]) -> Result<Self> {
        let mut child = cluster
            .kubectl()
            .command()
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Hints for people.
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start kubectl {arguments:?}"))?;
        let output = child.stdout.take().context("no output")?;
        Ok(Self {
            child,
            output: BufReader::new(output),
        })
    }

    /// Writes to its input.
    pub(super) fn write(&mut self, text: &str) -> Result<()> {
        use std::io::Write;
        let input = self.child.stdin.as_mut().context("no input")?;
        input.write_all(text.as_bytes()).context("write to kubectl")
    }

    /// Its next line; empty at the end.
    pub(super) fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .context("read kubectl's output")?;
        Ok(line)
    }

    /// Reads until a line has `text` in it.
    pub(super) fn wait_for(&mut self, text: &str) -> Result<()> {
        loop {
            let line = self.read_line()?;
            ensure!(!line.is_empty(), "the output ended before {text:?}");
            if line.contains(text) {
                return Ok(());
            }
        }
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
