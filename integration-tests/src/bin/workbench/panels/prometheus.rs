//! A Prometheus that collects from one manager, and what it answers.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{Client, Machine, Node, PATIENCE};
use serde_json::{Value, json};

/// Where it is asked, in the machine's own network.
const ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9090);
/// The label that the chart's `PodMonitor` adds.
pub const NODE: &str = "node-1";
/// Between two collections, in seconds.
pub const INTERVAL: u32 = 1;
/// Between two questions where nothing tells when it is worth asking again.
const ASK: Duration = Duration::from_millis(50);

/// A time range of queries, in seconds since 1970, and the step between two answers in it.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub start: f64,
    pub end: f64,
    pub step: u32,
}

/// A running Prometheus. Dropping it ends it.
pub struct Prometheus {
    child: Child,
    log: PathBuf,
}

/// Seconds since 1970.
pub fn now() -> Result<f64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Ok(now.context("a clock before 1970")?.as_secs_f64())
}

impl Prometheus {
    /// Starts one with these alerts; returns once it has collected from the manager.
    pub fn start(node: &Node, manager: SocketAddr, alerts: &Path) -> Result<Self> {
        let folder = node.folder().join("prometheus");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let config = folder.join("prometheus.json");
        // JSON is YAML.
        let settings = json!({
            "global": {
                "scrape_interval": format!("{INTERVAL}s"),
                "scrape_timeout": format!("{INTERVAL}s"),
                "evaluation_interval": format!("{INTERVAL}s"),
            },
            "rule_files": [alerts],
            "scrape_configs": [{
                "job_name": "podmotion",
                "honor_labels": true,
                "static_configs": [{"targets": [manager], "labels": {"node": NODE}}],
            }],
        });
        fs::write(&config, settings.to_string())
            .with_context(|| format!("write {}", config.display()))?;
        let log = folder.join("prometheus.log");
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let (mark, name) = Machine::get()?.mark();
        let child = Command::new(node.tools().cached("tools/prometheus/bin/prometheus")?)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .env(mark, name)
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("start Prometheus")?;
        let mut prometheus = Self { child, log };
        prometheus.wait_collected()?;
        Ok(prometheus)
    }

    /// It tells nobody when it is ready.
    fn wait_collected(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let up = now().and_then(|now| self.query("up == 1", now));
            if up.as_ref().is_ok_and(|series| !series.is_empty()) {
                return Ok(());
            }
            let said = || fs::read_to_string(&self.log).unwrap_or_default();
            if let Some(status) = self.child.try_wait()? {
                bail!("Prometheus ended, {status}: {}", said());
            }
            if Instant::now() > deadline {
                bail!("Prometheus collects nothing: {up:?}: {}", said());
            }
            thread::sleep(ASK);
        }
    }

    /// The series of a query at one time.
    pub fn query(&self, query: &str, at: f64) -> Result<Vec<Value>> {
        self.ask("query", &[("query", query), ("time", &at.to_string())])
    }

    /// The series of a query over a time range.
    pub fn query_range(&self, query: &str, span: Span) -> Result<Vec<Value>> {
        self.ask(
            "query_range",
            &[
                ("query", query),
                ("start", &span.start.to_string()),
                ("end", &span.end.to_string()),
                ("step", &span.step.to_string()),
            ],
        )
    }

    fn ask(&self, what: &str, arguments: &[(&str, &str)]) -> Result<Vec<Value>> {
        let mut path = format!("/api/v1/{what}");
        for (index, (name, value)) in arguments.iter().enumerate() {
            let before = if index == 0 { '?' } else { '&' };
            write!(path, "{before}{name}={}", encode(value))?;
        }
        let answer = Client::default().get(ADDRESS, &path)?;
        ensure!(
            answer.status == 200,
            "Prometheus answers {} to {arguments:?}: {}",
            answer.status,
            answer.body
        );
        let answer: Value = serde_json::from_str(&answer.body).context("parse the answer")?;
        let series = answer["data"]["result"].as_array();
        series.cloned().context("an answer without series")
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the form of a query in an address.
fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::encode;

    #[test]
    fn only_letters_digits_and_a_few_signs_stay() {
        let query = "rate(a_b{c=\"d\"}[4s])";
        assert_eq!(encode(query), "rate%28a_b%7Bc%3D%22d%22%7D%5B4s%5D%29");
    }
}
