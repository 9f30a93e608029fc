//! Programs that light sleep is not for stay awake, where they may not sleep deep, and say why.

use std::fs;

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{App, Container, Depth, Image, Network, Node, Runtime, Stdin};

use super::compile;
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    ("sleep::refused::a_userfaultfd_of_its_own", userfaultfd),
    ("sleep::refused::an_io_uring", io_uring),
    ("sleep::refused::a_process_that_it_traces", tracee),
];

/// A program that has something of this kind, and would sleep at once.
fn pinner(node: &Node, kind: &str) -> Result<Container> {
    ensure!(node.depth() == Depth::Light);
    let folder = node.folder().join("pinner");
    let program = folder.join("pinner");
    if !program.exists() {
        fs::create_dir_all(&folder).context("make a folder")?;
        compile("../pager/tests/root/pinner.c", &program)?;
    }
    let app = App::new(["/p/pinner", kind])
        .image(Image::Busybox)
        .mount(folder, "/p")
        .network(Network::Own)
        .stdin(Stdin::Pipe)
        .ports(&[8080])
        .annotation("scaledown-duration", "100ms")
        .annotation("deep-sleep-after", "never");
    let container = node.run(app)?;
    container.stdout()?.wait_for("ready")?;
    Ok(container)
}

fn ensure_well(container: &Container) -> Result<()> {
    container.write_stdin(b"check\n")?;
    container.stdout()?.wait_for("good").map(drop)
}

/// It stays so for good.
fn not_movable(node: &Node, kind: &str, named: &str) -> Result<()> {
    let container = pinner(node, kind)?;
    let status = container.sleeper().wait_reason("not-movable")?;
    ensure!(status.awake_reason.detail.contains(named), "{status:?}");
    ensure_well(&container)
}

fn userfaultfd(node: &Node, _: Runtime) -> Result<()> {
    not_movable(node, "faults", "[userfaultfd]")
}

fn io_uring(node: &Node, _: Runtime) -> Result<()> {
    not_movable(node, "mapped-ring", "[io_uring]")
}

/// A debugger goes some time: it is tried again.
fn tracee(node: &Node, _: Runtime) -> Result<()> {
    let container = pinner(node, "tracee")?;
    let status = container.sleeper().wait_reason("back-off")?;
    let tracer = format!("is traced by process {}", container.pid()?);
    ensure!(status.awake_reason.detail.contains(&tracer), "{status:?}");
    ensure_well(&container)
}
