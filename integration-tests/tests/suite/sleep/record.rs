//! runc's own record of a container is true after a wake: whoever uses runc beside the shim (an
//! operator, a debugging tool) finds the woken process.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use podmotion_integration_tests::{
    App, Client, Container, ContainerdVersion, NAMESPACE, Node, RuncVersion, Runtime, Versions,
};
use serde_json::Value;

use crate::trial;

pub(super) fn trials() -> Vec<Trial> {
    [RuncVersion::V1_1, RuncVersion::V1_3]
        .into_iter()
        .map(|runc| {
            let versions = Versions {
                containerd: ContainerdVersion::V2,
                runc,
            };
            trial(
                "sleep::record::runc_finds_the_woken_process",
                runc_finds_the_woken_process,
                Runtime::Podmotion,
                versions,
            )
        })
        .collect()
}

fn runc(container: &Container, arguments: &[&str]) -> Result<Output> {
    Command::new(container.node().tools().runc()?)
        .args(["--root", &format!("/run/containerd/runc/{NAMESPACE}")])
        .args(arguments)
        .output()
        .with_context(|| format!("run runc {arguments:?}"))
}

fn said(container: &Container, arguments: &[&str]) -> Result<String> {
    let output = runc(container, arguments)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "runc {arguments:?}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn runc_finds_the_woken_process(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(App::counter().memory_limit(256 << 20))?;
    container.stdout()?.wait_for("listening")?;
    let before = container.pid()?;
    container.sleep()?;
    container.wake()?;
    let pid = container.pid()?;
    ensure!(
        pid != before,
        "it is the same process: nothing was restored"
    );
    let id = container.id();

    let state: Value = serde_json::from_str(&said(&container, &["state", id])?)?;
    ensure!(state["status"] == "running", "{state}");
    ensure!(state["pid"] == pid, "{state}, and the shim says {pid}");
    let listed: Vec<u32> = serde_json::from_str(&said(&container, &["ps", "-f", "json", id])?)?;
    ensure!(listed.contains(&pid), "{listed:?} without {pid}");
    let echoed = said(&container, &["exec", id, "cat", "/proc/1/comm"])?;
    ensure!(echoed.starts_with("python3"), "exec saw {echoed:?}");
    said(&container, &["update", "--memory", "134217728", id])?;
    let answer = Client::default().get(container.address(8080)?, "/")?;
    ensure!(answer.status == 200, "{answer:?}");

    // TERM by runc reaches the process, and its end is the container's.
    said(&container, &["kill", id, "TERM"])?;
    let exit = container.wait()?;
    ensure!(exit.status == 0 || exit.status == 143, "{exit:?}");
    container.delete_task()?;
    let gone = runc(&container, &["state", id])?;
    ensure!(
        !gone.status.success(),
        "runc still knows the deleted container"
    );
    Ok(())
}
