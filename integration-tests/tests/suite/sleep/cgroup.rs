//! A container's control group and its limits are there while no process of it is.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{
    CgroupDriver, Container, Machine, Node, PATIENCE, Runtime, memory_limit, wait_gone,
};

use super::{counter, visit};
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[(
    "sleep::cgroup::limits_outlive_the_processes",
    limits_outlive_the_processes,
)];

const LIMIT: u64 = 128 << 20;

fn limits_outlive_the_processes(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(counter().memory_limit(LIMIT))?;
    container.stdout()?.wait_for("listening")?;
    check(&container).context("before the first sleep")?;
    for number in 1..=3 {
        let pid = container.pid()?.try_into()?;
        container.sleep()?;
        wait_gone(pid, PATIENCE)?;
        check(&container).context("asleep")?;
        ensure!(visit(container.address(8080)?)? == number);
        container.wait_state("running")?;
        check(&container).context("awake again")?;
        let pid = container.pid()?;
        let path = format!("/proc/{pid}/cgroup");
        let groups = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let group = container.cgroup()?;
        ensure!(
            groups.lines().any(|line| line.ends_with(&group)),
            "woken outside of {group}: {groups}"
        );
    }
    Ok(())
}

/// The limit is in place; and where systemd made the group, it goes on with the scope and its limit.
fn check(container: &Container) -> Result<()> {
    let group = container.cgroup()?;
    let limit = memory_limit(&group)?;
    ensure!(limit == LIMIT, "the limit of {group} is {limit}");
    if Machine::get()?.cgroup_driver() == CgroupDriver::Systemd {
        let scope = group.rsplit('/').next().unwrap_or_default();
        let output = Command::new("systemctl")
            .args(["show", "--property=ActiveState,MemoryMax", scope])
            .output()
            .context("run systemctl")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let mut lines: Vec<_> = said.lines().collect();
        lines.sort_unstable();
        ensure!(
            lines == ["ActiveState=active", &format!("MemoryMax={LIMIT}")],
            "systemd says of {scope}: {lines:?}"
        );
    }
    Ok(())
}
