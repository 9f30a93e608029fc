//! Processes: start, end, signals, later ones.

use anyhow::{Result, ensure};
use podmotion_integration_tests::{App, Exec, Member, Node, PATIENCE, Runtime, State, wait_gone};

pub(super) fn exit_code(node: &Node, runtime: Runtime) -> Result<()> {
    for code in [0, 7, 255] {
        let container = node.create(App::sh(&format!("echo out; exit {code}")).runtime(runtime))?;
        ensure!(container.state()? == State::Created);
        let pid = container.pid()?;
        ensure!(
            container.start()? == pid,
            "start tells another pid than create"
        );
        ensure!(container.wait()?.status == code);
        ensure!(container.state()? == State::Stopped);
        ensure!(container.stdout()?.wait_end()? == b"out\n");
        ensure!(container.delete_task()?.status == code);
        ensure!(container.state().is_err(), "deleted, but still known");
    }
    Ok(())
}

pub(super) fn exec_exit_code(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(App::sh("sleep 1000").runtime(runtime))?;
    let shim = node.shim_of(container.id())?;
    ensure!(shim.is(runtime.shim()), "served by {shim:?}");
    for code in [0, 3, 254] {
        let exec = Exec::sh(&format!("echo from exec; echo error >&2; exit {code}"));
        let mut process = container.exec(&exec)?;
        let pid = process.start()?;
        ensure!(pid != 0 && pid != container.pid()?);
        ensure!(process.wait()?.status == code);
        ensure!(process.state()? == State::Stopped);
        ensure!(process.delete()?.status == code);
        ensure!(process.stdout()?.wait_end()? == b"from exec\n");
        ensure!(process.stderr()?.wait_end()? == b"error\n");
    }
    ensure!(container.state()? == State::Running);
    Ok(())
}

pub(super) fn exec_terminal(node: &Node, runtime: Runtime) -> Result<()> {
    use podmotion_integration_tests::Stdin;
    let container = node.run(App::sh("sleep 1000").runtime(runtime))?;
    let exec = Exec::sh(
        "test -t 0 && test -t 1 && echo terminal; read line; echo \"got $line\"; stty size; exit 9",
    );
    let process = container.exec(&exec.terminal().stdin(Stdin::Pipe))?;
    process.start()?;
    process.resize(101, 33)?;
    process.stdout()?.wait_for("terminal\r\n")?;
    process.write_stdin(b"words\n")?;
    process.stdout()?.wait_for("got words\r\n")?;
    process.stdout()?.wait_for("33 101\r\n")?;
    ensure!(process.wait()?.status == 9);
    Ok(())
}

pub(super) fn kill_term_and_kill(node: &Node, runtime: Runtime) -> Result<()> {
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let container = node.run(App::sh(script).runtime(runtime))?;
    container.stdout()?.wait_for("ready")?;
    container.kill(libc::SIGTERM)?;
    ensure!(container.wait()?.status == 5, "TERM was not delivered");
    container.stdout()?.wait_for("caught")?;

    let container = node.run(App::sh("trap '' TERM; echo ready; sleep 1000").runtime(runtime))?;
    container.stdout()?.wait_for("ready")?;
    let pids = container.pids()?;
    container.kill(libc::SIGTERM)?;
    ensure!(container.state()? == State::Running);
    container.kill(libc::SIGKILL)?;
    ensure!(container.wait()?.status == 128 + 9);
    for pid in pids {
        wait_gone(pid.try_into()?, PATIENCE)?;
    }
    Ok(())
}

pub(super) fn pids(node: &Node, runtime: Runtime) -> Result<()> {
    let container =
        node.run(App::sh("sleep 1000 & sleep 1001 & echo ready; wait").runtime(runtime))?;
    container.stdout()?.wait_for("ready")?;
    let pids = container.pids()?;
    ensure!(pids.len() == 3, "a shell and two children are {pids:?}");
    ensure!(pids.contains(&container.pid()?));
    Ok(())
}

pub(super) fn init_exit_ends_execs(node: &Node, runtime: Runtime) -> Result<()> {
    let container = node.run(App::sh("sleep 1000").runtime(runtime))?;
    let process = container.exec(&Exec::sh("echo ready; sleep 1000"))?;
    process.start()?;
    process.stdout()?.wait_for("ready")?;
    container.kill(libc::SIGKILL)?;
    ensure!(container.wait()?.status == 137);
    ensure!(process.wait()?.status == 137);
    Ok(())
}

pub(super) fn pod_shares_one_shim(node: &Node, runtime: Runtime) -> Result<()> {
    let before = node.shims()?;
    let pod = node.pod(runtime)?;
    let first = pod.start(Member::new("first", App::sh("echo one; sleep 1000")))?;
    let second = pod.start(Member::new("second", App::sh("echo two; sleep 1000")))?;
    ensure!(
        pod.addresses().len() == 2,
        "addresses: {:?}",
        pod.addresses()
    );
    // Of those before, one of the last test's may have ended meanwhile.
    let mut shims = node.shims()?;
    shims.retain(|shim| !before.contains(shim));
    ensure!(shims.len() == 1, "three containers of a pod have {shims:?}");
    ensure!(
        shims.iter().any(|shim| shim.is(runtime.shim())),
        "{shims:?}"
    );
    let (exit, output) = first.exec(&["/bin/sh", "-c", "echo inside; exit 4"])?;
    ensure!((exit.status, output.as_str()) == (4, "inside\n"));
    second.stop(0)?;
    ensure!(second.status()? == ("CONTAINER_EXITED".into(), 137));
    ensure!(second.log()?.contains("two"), "{}", second.log()?);
    ensure!(first.status()?.0 == "CONTAINER_RUNNING");
    Ok(())
}
