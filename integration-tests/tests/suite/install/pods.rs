//! Pods on a node that Podmotion was put on.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{
    App, Client, Member, Node, PATIENCE, Pod, Runtime, Sleeper, wait_gone,
};

use super::node::{RESTART, Source, dump, files, run, same, uninstall};

/// Longer than the containers' scale-down time.
const IDLE: Duration = Duration::from_secs(4);

fn count(node: &Node, pod: &Pod) -> Result<u64> {
    let address = pod.address(8080)?;
    let answer = node.within(move || Client::default().get(address, "/"))??;
    let body: serde_json::Value = serde_json::from_str(&answer.body)?;
    body["count"].as_u64().context("an answer without a count")
}

pub(super) fn sleep_wake_and_outlive_it(node: &Node) -> Result<()> {
    let (before, (_, settings)) = (files(node)?, dump(node)?);
    let source = Source::real(node)?;
    let said = run(node, &source.install())?;
    ensure!(said.iter().any(|line| line == RESTART), "{said:?}");
    let (whole, rest) = dump(node)?;
    ensure!(whole.contains("io.containerd.podmotion.v1"), "{whole}");
    ensure!(
        rest == settings,
        "settings were lost:\n{settings}\n\n{rest}"
    );

    let runc = node.pod(Runtime::Runc)?;
    let pod = node.pod(Runtime::Podmotion)?;
    let container = pod.start(Member::new("app", App::counter()))?;
    let sleeper = Sleeper::find(container.id())?;
    sleeper.wait_until("its port", |status| status.ports.contains(&8080))?;
    ensure!(count(node, &pod)? == 1, "not the first request");
    sleeper.wait_state("asleep")?;
    ensure!(count(node, &pod)? == 2, "it has lost its memory");
    sleeper.wait_state("asleep")?;

    let said = run(node, &uninstall())?;
    let name = format!("{}: awake", container.id());
    ensure!(
        said.iter()
            .any(|line| line.ends_with("/app: awake") || *line == name),
        "{said:?}"
    );
    same("after uninstall", &before, &files(node)?)?;
    let (whole, rest) = dump(node)?;
    ensure!(
        !whole.contains("io.containerd.podmotion.v1") && rest == settings,
        "{whole}"
    );
    ensure!(count(node, &pod)? == 3, "it has lost its memory");
    // There is nothing to wait for: it is not to sleep any more, and nothing is to be left of a try.
    thread::sleep(IDLE);
    same("while it runs on", &before, &files(node)?)?;
    ensure!(count(node, &pod)? == 4, "it has lost its memory");
    drop(runc);
    container.stop(5)?;
    drop(pod);
    // They have been told to end, and may take a moment for it.
    for shim in node.shims()? {
        wait_gone(shim.pid, PATIENCE).with_context(|| format!("{shim:?} is left"))?;
    }
    Ok(())
}

pub(super) fn once_more_changes_nothing(node: &Node) -> Result<()> {
    let source = Source::small(node, "one")?;
    run(node, &source.install())?;
    let (installed, pid) = (files(node)?, node.pid());
    let said = run(node, &source.install())?;
    ensure!(!said.iter().any(|line| line == RESTART), "{said:?}");
    ensure!(
        !said.iter().any(|line| line.starts_with("write ")),
        "{said:?}"
    );
    ensure!(node.pid() == pid, "containerd was restarted");
    same("once more", &installed, &files(node)?)?;

    // Another version takes its place, without a restart; the old one goes, since nobody uses it.
    let other = Source::small(node, "two")?;
    let said = run(node, &other.install())?;
    ensure!(!said.iter().any(|line| line == RESTART), "{said:?}");
    let removed = said.iter().filter(|line| line.ends_with(": removed"));
    ensure!(removed.count() == 1, "{said:?}");

    // What others add to the files meanwhile is theirs and stays.
    let main = node.folder().join("config.toml");
    let text = std::fs::read_to_string(&main)?;
    let added = text.replacen("[debug]", "# by the owner\n[debug]", 1);
    ensure!(added != text, "nothing to add to in {text}");
    std::fs::write(&main, &added)?;
    run(node, &uninstall())?;
    let left = std::fs::read_to_string(&main)?;
    ensure!(
        left.contains("# by the owner") && !left.contains("podmotion begin"),
        "{left}"
    );
    ensure!(!left.contains("conf.d/podmotion"), "{left}");
    dump(node).map(drop)
}
