//! As somebody would try it by hand: with the real `ctr`.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use anyhow::{Result, bail, ensure};
use podmotion_integration_tests::{Machine, Netns, Node, PATIENCE, Runtime, Sleeper, wait_gone};

use super::visit;
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    ("sleep::byhand::ctr_run_and_tasks", ctr_run_and_tasks),
    ("sleep::byhand::wrong_annotation", wrong_annotation),
    ("sleep::byhand::host_network", host_network),
];

const IMAGE: &str = "podmotion.test/apps:1";

/// A container that `ctr run` has started; removed at the end.
struct ByHand<'a> {
    node: &'a Node,
    id: String,
    log: PathBuf,
}

impl<'a> ByHand<'a> {
    fn run(node: &'a Node, flags: &[&str]) -> Result<(Self, Output)> {
        let id = node.next_id();
        let log = node.folder().join(format!("{id}.log"));
        let container = Self { node, id, log };
        let mut arguments: Vec<String> = ["run", "--detach", "--runtime"].map(Into::into).into();
        arguments.extend([
            Runtime::Podmotion.runtime_type().into(),
            "--cgroup".into(),
            format!("/{}/{}", Machine::get()?.name(), container.id),
            "--log-uri".into(),
            format!("file://{}", container.log.display()),
        ]);
        arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
        arguments.extend([IMAGE, &container.id, "python3", "/apps/counter.py"].map(Into::into));
        let output = node.ctr(arguments)?;
        Ok((container, output))
    }

    fn sleeper(&self) -> Sleeper {
        Sleeper::of_container(&self.id)
    }

    /// Runs `ctr task ...`; returns what it printed.
    fn task(&self, arguments: &[&str]) -> Result<String> {
        let all: Vec<&str> = ["task"].iter().chain(arguments).copied().collect();
        let output = self.node.ctr(&all)?;
        ensure!(output.status.success(), "{all:?}: {output:?}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Its line in `ctr task ls`.
    fn listed(&self) -> Result<String> {
        let list = self.task(&["ls"])?;
        match list
            .lines()
            .find(|line| line.starts_with(&format!("{} ", self.id)))
        {
            Some(line) => Ok(line.to_owned()),
            None => bail!("{} is not in {list}", self.id),
        }
    }
}

impl Drop for ByHand<'_> {
    fn drop(&mut self) {
        // Best effort: what is left goes with the machine.
        let _ = self.node.ctr(["task", "rm", "--force", &self.id]);
        let _ = self.node.ctr(["container", "rm", &self.id]);
    }
}

fn ctr_run_and_tasks(node: &Node, _: Runtime) -> Result<()> {
    let netns = Netns::new()?;
    let namespace = format!("network:{}", netns.path().display());
    let (container, output) = ByHand::run(
        node,
        &[
            "--with-ns",
            &namespace,
            "--env",
            "MEM_MB=5",
            "--annotation",
            "komodor.com/podmotion-scaledown-duration=1s",
        ],
    )?;
    ensure!(output.status.success(), "{output:?}");
    let (id, sleeper) = (container.id.as_str(), container.sleeper());
    let address = std::net::SocketAddr::new(netns.ipv4(), 8080);
    // By itself.
    sleeper.wait_state("asleep")?;
    ensure!(
        container.listed()?.contains("RUNNING"),
        "{}",
        container.listed()?
    );
    ensure!(visit(address)? == 1);

    sleeper.sleep()?;
    let metrics = container.task(&["metrics", id])?;
    ensure!(metrics.contains("memory"), "{metrics}");
    ensure!(sleeper.status()?.state == "asleep", "metrics woke it");

    let output = container.task(&["exec", "--exec-id", "one", id, "echo", "from exec"])?;
    ensure!(output == "from exec\n", "{output:?}");
    let output = node.ctr(["task", "exec", "--exec-id", "two", id, "sh", "-c", "exit 3"])?;
    ensure!(output.status.code() == Some(3), "{output:?}");

    sleeper.sleep()?;
    container.task(&["pause", id])?;
    ensure!(
        container.listed()?.contains("PAUSED"),
        "{}",
        container.listed()?
    );
    container.task(&["resume", id])?;
    ensure!(
        container.listed()?.contains("RUNNING"),
        "{}",
        container.listed()?
    );
    ensure!(visit(address)? == 2);

    sleeper.sleep()?;
    container.task(&["kill", "--signal", "TERM", id])?;
    node.events().wait_for_exit(id)?;
    let deleted = node.ctr(["task", "rm", id])?;
    ensure!(deleted.status.success(), "{deleted:?}");
    let log = fs::read_to_string(&container.log)?;
    ensure!(
        log.ends_with("terminated\n"),
        "TERM was not delivered: {log}"
    );
    Ok(())
}

fn wrong_annotation(node: &Node, _: Runtime) -> Result<()> {
    for (annotation, words) in [
        (
            "komodor.com/podmotion-scaledown-duration=5 minutes",
            r#"annotation komodor.com/podmotion-scaledown-duration: "5 minutes" is not valid: expected a Go duration"#,
        ),
        (
            "komodor.com/podmotion-scaledown-duraton=5m",
            "annotation komodor.com/podmotion-scaledown-duraton does not exist: did you mean \
             komodor.com/podmotion-scaledown-duration?",
        ),
    ] {
        let before = node.shims()?;
        let (_container, output) = ByHand::run(node, &["--annotation", annotation])?;
        ensure!(!output.status.success(), "{annotation} is accepted");
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains(words), "{annotation}: {said}");
        // No shim stays for it.
        for shim in node.shims()?.iter().filter(|shim| !before.contains(shim)) {
            wait_gone(shim.pid, PATIENCE)?;
        }
    }
    Ok(())
}

fn host_network(node: &Node, _: Runtime) -> Result<()> {
    let (container, output) = ByHand::run(
        node,
        &[
            "--net-host",
            "--env",
            "PORT=18080",
            "--annotation",
            "komodor.com/podmotion-scaledown-duration=1s",
        ],
    )?;
    ensure!(output.status.success(), "{output:?}");
    let status = container.sleeper().wait_reason("host-network")?;
    ensure!(
        status.awake_reason.detail == "it uses the node's network",
        "{status:?}"
    );
    ensure!(container.sleeper().try_sleep().is_err());
    ensure!(container.sleeper().status()?.state == "running");
    Ok(())
}
