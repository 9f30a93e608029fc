//! Load from `wrk`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Container, Node};

use super::memory::PORT;

/// Connections at once.
const CONNECTIONS: &str = "16";

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Many requests on each connection.
    Requests,
    /// A connection for each request.
    Connections,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests on kept connections",
            Self::Connections => "new connections",
        }
    }
}

/// The load generator.
pub struct Load {
    wrk: PathBuf,
    seconds: u32,
}

impl Load {
    pub fn new(node: &Node, seconds: u32) -> Result<Self> {
        let wrk = node.tools().cached("tools/bin/wrk")?;
        Ok(Self { wrk, seconds })
    }

    /// Requests that were answered in a second.
    pub fn run(&self, container: &Container, kind: Kind) -> Result<f64> {
        let mut command = Command::new(&self.wrk);
        command
            .args(["--threads", "1", "--connections", CONNECTIONS])
            .args(["--duration", &format!("{}s", self.seconds)]);
        if kind == Kind::Connections {
            command.args(["--header", "Connection: close"]);
        }
        command.arg(format!("http://{}/page.html", container.address(PORT)?));
        let output = command
            .output()
            .with_context(|| format!("run {command:?}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{command:?}: {text}");
        parse(&text).with_context(|| format!("{command:?} said {text}"))
    }
}

/// Reads `Requests/sec:  12345.67`; answers that are errors do not count as ones.
fn parse(text: &str) -> Result<f64> {
    ensure!(!text.contains("Non-2xx"), "the server answered with errors");
    text.lines()
        .find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok())
        .context("no rate")
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_rate_of_a_run() {
        let text =
            "  57346 requests in 3.00s, 12MB read\nRequests/sec:  19112.33\nTransfer/sec: 4MB\n";
        assert_eq!(parse(text).unwrap(), 19112.33);
    }

    #[test]
    fn errors_are_no_answers() {
        let text = "  Non-2xx or 3xx responses: 7\nRequests/sec:  19112.33\n";
        assert!(parse(text).is_err());
    }
}
