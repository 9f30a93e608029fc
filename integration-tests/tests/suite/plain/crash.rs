//! What remains when something is killed or given up, and when nothing is.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{
    App, Census, Exec, Member, Network, Node, PATIENCE, Runtime, State, wait_gone,
};
use rustix::process::{Pid, Signal, kill_process};

/// Loads what a first container loads, so that a count before does not miss it.
fn warm_up(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(App::sh("true").network(Network::Own).runtime(runtime))?;
    container.wait()?;
    Ok(())
}

pub(super) fn shim_killed(node: &Node, runtime: Runtime) -> Result<()> {
    warm_up(node, runtime)?;
    let before = Census::take()?;
    let container = node.run(App::sh("sleep 1000").runtime(runtime))?;
    let pid = container.pid()?.try_into()?;
    let shim = node.shim_of(container.id())?;
    kill_process(Pid::from_raw(shim.pid).expect("a pid"), Signal::KILL)?;
    let exit = node.events().wait_for_exit(container.id())?;
    ensure!(exit.exit_status == 137, "{exit:?}");
    wait_gone(pid, PATIENCE)?;
    drop(container);
    let except: &[&str] = match runtime {
        // A killed shim of containerd's own leaves the socket file it listened on (seen with 1.6).
        Runtime::Runc => &["file /run/containerd/s/"],
        Runtime::Podmotion => &[],
    };
    Census::wait_as_before_but(&before, except)
}

pub(super) fn containerd_restarted(node: &Node, runtime: Runtime) -> Result<()> {
    let script = "trap 'echo caught; exit 6' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let container = node.run(App::sh(script).runtime(runtime))?;
    container.stdout()?.wait_for("ready")?;
    let (pid, shim) = (container.pid()?, node.shim_of(container.id())?);
    node.kill9()?;
    node.start_again()?;
    ensure!(container.pid()? == pid && container.state()? == State::Running);
    ensure!(node.shim_of(container.id())? == shim, "another shim");
    let (exit, output) = container.exec_output(&Exec::sh("echo again"))?;
    ensure!((exit.status, output.as_str()) == (0, "again\n"));
    node.restart()?;
    container.kill(libc::SIGTERM)?;
    container.stdout()?.wait_for("caught")?;
    ensure!(container.wait()?.status == 6);
    Ok(())
}

/// containerd's client goes while runc makes the container, and containerd deletes what is not there yet. It waits for
/// the deletion for five seconds (its timeout `shim.cleanup`): runc is done within that time, or later.
pub(super) fn given_up(node: &Node, runtime: Runtime) -> Result<()> {
    warm_up(node, runtime)?;
    let before = Census::take()?;
    for busy in [Duration::from_secs(1), Duration::from_secs(7)] {
        let folder = node.folder().join("slow-runc");
        let (begun, go, runc) = (folder.join("begun"), folder.join("go"), folder.join("runc"));
        fs::create_dir(&folder)?;
        for fifo in [&begun, &go] {
            nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU)?;
        }
        let script = format!(
            "#!/bin/sh\nfor word; do case $word in create) echo >{}; read x <{};; esac; done\nexec {} \"$@\"\n",
            begun.display(),
            go.display(),
            node.tools().runc()?.display()
        );
        fs::write(&runc, script)?;
        fs::set_permissions(&runc, fs::Permissions::from_mode(0o755))?;
        let container = node.record(App::sh("sleep 1000").runc(&runc).runtime(runtime))?;
        container.give_up_task(|| Ok(fs::read(&begun).map(drop)?))?;
        let shim = node.shim_of(container.id())?;
        ensure!(
            wait_gone(shim.pid, busy).is_err(),
            "the shim has ended and left runc to itself"
        );
        // Where nobody reads any more, this does not wait for a reader.
        let mut options = OpenOptions::new();
        let options = options.write(true).custom_flags(libc::O_NONBLOCK);
        drop(options.open(&go).context("runc does not wait any more")?);
        wait_gone(shim.pid, PATIENCE)?;
        drop(container);
        fs::remove_dir_all(&folder)?;
        Census::wait_as_before(&before)?;
    }
    Ok(())
}

pub(super) fn nothing_left(node: &Node, runtime: Runtime) -> Result<()> {
    warm_up(node, runtime)?;
    let pod = node.pod(runtime)?;
    pod.start(Member::new("one", App::sh("sleep 1000")))?;
    drop(pod);
    let before = Census::take()?;
    for _ in 0..3 {
        let container = node.run(App::sh("sleep 1000").network(Network::Own).runtime(runtime))?;
        container.exec_output(&Exec::sh("true"))?;
        let _left_behind = container.exec(&Exec::sh("sleep 1000"))?;
        let pod = node.pod(runtime)?;
        pod.start(Member::new("one", App::sh("sleep 1000")))?;
    }
    Census::wait_as_before(&before)
}
