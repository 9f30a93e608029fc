//! What remains when something is killed, and when nothing is.

use anyhow::{Result, ensure};
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
