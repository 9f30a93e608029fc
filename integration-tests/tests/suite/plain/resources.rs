//! Control groups: freezing, figures, limits.

use anyhow::{Result, ensure};
use podmotion_integration_tests::{App, Node, Runtime, State, Stdin, memory_limit};

pub(super) fn pause_resume(node: &Node, runtime: Runtime) -> Result<()> {
    let container =
        node.run(App::sh("while :; do echo tick; sleep 0.01; done").runtime(runtime))?;
    container.stdout()?.wait_for("tick")?;
    container.pause()?;
    ensure!(container.state()? == State::Paused);
    node.events().wait_for(container.id(), "/tasks/paused")?;
    container.resume()?;
    ensure!(container.state()? == State::Running);
    node.events().wait_for(container.id(), "/tasks/resumed")?;
    let so_far = container.stdout()?.bytes().len();
    container.stdout()?.wait_for_bytes(so_far + 50)
}

pub(super) fn metrics(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(App::sh("echo ready; sleep 1000").runtime(runtime))?;
    container.stdout()?.wait_for("ready")?;
    let (url, bytes) = container.metrics()?;
    ensure!(
        url.starts_with("io.containerd.cgroups.v"),
        "metrics are of type {url}"
    );
    ensure!(bytes.len() > 100, "only {} bytes of metrics", bytes.len());
    Ok(())
}

pub(super) fn update_memory_limit(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(
        App::sh("sleep 1000")
            .memory_limit(64 << 20)
            .runtime(runtime),
    )?;
    ensure!(memory_limit(&container.cgroup()?)? == 64 << 20);
    container.update_memory(96 << 20)?;
    ensure!(memory_limit(&container.cgroup()?)? == 96 << 20);
    Ok(())
}

pub(super) fn oom_event(node: &Node, runtime: Runtime) -> Result<()> {
    // Told when: containerd's own shim listens for it only once the program runs, and it happens once.
    let app = App::sh(r#"read go; awk 'BEGIN { s = "x"; while (1) s = s s }'; sleep 1000"#);
    let app = app.stdin(Stdin::Pipe).memory_limit(16 << 20);
    let container = node.run(app.runtime(runtime))?;
    container.write_stdin(b"go\n")?;
    node.events().wait_for(container.id(), "/tasks/oom")?;
    Ok(())
}
