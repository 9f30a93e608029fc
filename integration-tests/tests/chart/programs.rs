//! The programs take the flags that the chart gives them, and serve the metrics that dashboard and alerts ask for.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::PATIENCE;
use podmotion_model::metrics;
use serde_json::{Value, json};

use crate::helm::{cases, objects, root, template_case};

/// A program under test: of `$PODMOTION_BIN`, or of the checkout's `target/dist`.
fn program(name: &str) -> Result<PathBuf> {
    let folder =
        std::env::var_os("PODMOTION_BIN").map_or_else(|| root().join("target/dist"), PathBuf::from);
    let path = folder.join(name);
    ensure!(
        path.exists(),
        "{} is missing: build the binaries or set PODMOTION_BIN",
        path.display()
    );
    Ok(path)
}

/// Asks for help behind the flags: a program reads these first, and says which one it does not know.
fn takes(program: &Path, container: &Value) -> Result<()> {
    let flags: Vec<&str> = container["args"]
        .as_array()
        .context("a container without flags")?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let mut command = Command::new(program);
    command.args(&flags).arg("--help");
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{} {flags:?}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn each_program_takes_the_flags_that_it_gets() -> Result<()> {
    for case in cases()? {
        let set = objects(&template_case(&case)?)?
            .into_iter()
            .find(|object| object["kind"] == "DaemonSet")
            .context("no DaemonSet")?;
        let pod = &set["spec"]["template"]["spec"];
        for (name, list) in [("installer", "initContainers"), ("manager", "containers")] {
            let program = program(&format!("podmotion-{name}"))?;
            takes(&program, &pod[list][0]).with_context(|| format!("case {case}"))?;
        }
    }
    Ok(())
}

/// A metric that is there from its first sample on.
const LATER: &str = "podmotion_kubernetes_errors";

#[test]
fn the_manager_serves_the_metrics_of_the_table() -> Result<()> {
    let text = Manager::start()?.metrics()?;
    let served: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .map(str::to_owned)
        .collect();
    let known: BTreeSet<_> = metrics::ALL
        .iter()
        .filter(|metric| metric.family() != LATER)
        .map(|metric| format!("{} {}", metric.family(), metric.kind.as_str()))
        .collect();
    ensure!(
        served == known,
        "only served: {:?}, only in the table: {:?}",
        served.difference(&known),
        known.difference(&served)
    );
    Ok(())
}

/// A manager of no pods and no cluster. Dropping it ends it.
struct Manager {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Manager {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let self_test = folder.path().join("self-test.json");
        let result = json!({
            "passed": true, "error": null, "kernel": "", "containerd": "", "podmotion": "",
            "finished": "2026-01-01T00:00:00Z", "steps": [],
        });
        std::fs::write(&self_test, result.to_string())?;
        // It says nothing about a port that it chose by itself.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let child = Command::new(program("podmotion-manager")?)
            .args(["--no-kubernetes", "--metrics-address", &address.to_string()])
            .arg("--shims")
            .arg(folder.path().join("shims"))
            .arg("--self-test")
            .arg(self_test)
            .stdin(Stdio::null())
            .spawn()
            .context("start the manager")?;
        Ok(Self {
            child,
            address,
            _folder: folder,
        })
    }

    /// What it serves, once it listens.
    fn metrics(&mut self) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut stream = loop {
            match TcpStream::connect(self.address) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the manager ended: {status}");
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(answer)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
