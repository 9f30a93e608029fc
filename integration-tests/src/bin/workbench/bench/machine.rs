//! What the figures were measured on.

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use podmotion_integration_tests::Node;
use serde_json::{Value, json};

/// The machine and the programs.
pub struct Facts {
    cpu: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
    versions: String,
    criu: String,
    /// Processes that ran or wanted to, on average of a minute.
    pub load: f64,
}

impl Facts {
    pub fn read(node: &Node) -> Result<Self> {
        Ok(Self {
            cpu: field("/proc/cpuinfo", "model name")?,
            cores: thread::available_parallelism()
                .context("count the cores")?
                .get(),
            memory_bytes: memory()?,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            versions: node.versions().to_string(),
            criu: criu(&node.tools().criu()?)?,
            load: load()?,
        })
    }

    /// Whether something else takes so much of it that times are not the machine's own.
    pub fn is_busy(&self) -> bool {
        self.load > self.cores as f64 / 2.0
    }

    pub fn to_json(&self) -> Value {
        json!({
            "cpu": self.cpu,
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "kernel": self.kernel,
            "versions": self.versions,
            "criu": self.criu,
            "load_before": self.load,
        })
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} cores, {:.0} GiB, kernel {}, {}, CRIU {}, load average {:.1}",
            self.cpu,
            self.cores,
            self.memory_bytes as f64 / f64::from(1 << 30),
            self.kernel,
            self.versions,
            self.criu,
            self.load
        )
    }
}

/// The load average of the last minute.
pub fn load() -> Result<f64> {
    let text = read("/proc/loadavg")?;
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().context("parse the load average")
}

fn memory() -> Result<u64> {
    let total = field("/proc/meminfo", "MemTotal")?;
    let kib: u64 = total
        .trim_end_matches(" kB")
        .parse()
        .context("parse the memory's size")?;
    Ok(kib << 10)
}

fn criu(binary: &Path) -> Result<String> {
    let output = Command::new(binary)
        .arg("--version")
        .output()
        .with_context(|| format!("run {}", binary.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().find_map(|line| line.strip_prefix("Version: "));
    Ok(version.unwrap_or("of no known version").to_owned())
}

/// The first `name: value`.
fn field(path: &str, name: &str) -> Result<String> {
    read(path)?
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
        .with_context(|| format!("no {name} in {path}"))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}
