//! Annotations that a pod's author has made up to do harm.

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{App, Member, Node, Runtime, rpc_message, rss_anon_kib};

use crate::sleep::{visit, wait_listening};

/// A status of gRPC's longer than this is no error for people.
const LONGEST: usize = 2000;

/// How much a shim may grow by reading what it refuses, in KiB.
const GROWTH: u64 = 4 << 10;

/// Annotation and value; all of them fail.
const HOSTILE: &[(&str, &str)] = &[
    ("scaledown-duration", "-1s"),
    ("scaledown-duration", "99999999999999999999h"),
    ("scaledown-duration", "1e9h"),
    ("scaledown-duration", "1s\n[checkpoint]\nquota = \"100%\""),
    ("scaledown-duration", "\u{1b}[2J\u{1b}[31mowned"),
    ("scaledown-duration", "\u{202e}s01"),
    ("container-names", "a,,b"),
    ("ports-map", "web=0"),
    ("ports-map", "web=65536"),
    ("ports-map", "web=99999999999999999999"),
    ("ports-map", "web=80;web=81"),
    ("busy-cpu", "NaN"),
    ("busy-cpu", "-1"),
    ("busy-cpu", "inf"),
    ("deep-sleep-after", "0x0"),
    ("terminate-asleep", "WAKE"),
    ("dry-run", "true\0"),
    ("migrate", "a b"),
    ("tcp", "keep;close"),
    ("nothing-like-it", "true"),
];

/// Creates a container in a pod of its own, with one annotation, and returns the refusal. The pod's shim lives on,
/// hardly larger.
fn refused(node: &Node, runtime: Runtime, name: &str, value: &str) -> Result<String> {
    let pod = node.pod(runtime)?;
    let healthy = pod.start(Member::new("healthy", App::counter()))?;
    wait_listening(pod.address(8080)?)?;
    ensure!(visit(pod.address(8080)?)? == 1);
    let shim = node.shim_of(pod.id())?;
    let before = rss_anon_kib(shim.pid)?;
    let bad = Member::new("bad", App::counter().annotation(name, value));
    let error = match pod.start(bad) {
        Ok(_) => anyhow::bail!("{name} = {:.100?} is accepted", value),
        Err(error) => rpc_message(&error).context("no answer of the daemon's")?,
    };
    ensure!(
        visit(pod.address(8080)?)? == 2,
        "the pod's other container has suffered"
    );
    ensure!(healthy.status()?.0 == "CONTAINER_RUNNING");
    let grown = rss_anon_kib(shim.pid)?.saturating_sub(before);
    ensure!(grown < GROWTH, "the shim has grown by {grown} KiB");
    ensure!(
        error.contains(&format!("komodor.com/podmotion-{name}")) && error.len() < LONGEST,
        "{} bytes: {error:.500}",
        error.len()
    );
    let control = error.chars().find(|c| c.is_control());
    ensure!(control.is_none(), "{control:?} in {error:?}");
    Ok(error)
}

pub(super) fn huge(node: &Node, runtime: Runtime) -> Result<()> {
    let value = "a=80;".repeat((1 << 20) / 5);
    let error = refused(node, runtime, "ports-map", &value)?;
    ensure!(error.contains("bytes: expected at most 8192"), "{error}");
    Ok(())
}

pub(super) fn hostile(node: &Node, runtime: Runtime) -> Result<()> {
    for (name, value) in HOSTILE {
        let error =
            refused(node, runtime, name, value).with_context(|| format!("{name} = {value:?}"))?;
        println!("{name} = {value:?}: {error}");
    }
    Ok(())
}
