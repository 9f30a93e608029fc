//! Streams of `kubectl` that stay open while a container sleeps.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Client, Cluster};

use super::Body;
use super::counter::{count, sleeper, status};
use super::piped::{Piped, forward};

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "kube::streams::following_a_log_goes_on_across_sleeps",
        following_a_log_goes_on_across_sleeps,
    ),
    (
        "kube::streams::a_forwarded_connection_outlives_a_sleep",
        a_forwarded_connection_outlives_a_sleep,
    ),
];

fn following_a_log_goes_on_across_sleeps(cluster: &Cluster) -> Result<()> {
    let pod = sleeper(cluster)?;
    let mut log = Piped::start(cluster, &["logs", "--follow", pod.name()])?;
    log.wait_for("request 1 ")?;
    for number in 2..=3 {
        ensure!(count(&pod)? == number);
        // The next line: nothing comes twice, nothing is left out.
        let line = log.read_line()?;
        ensure!(line.starts_with(&format!("request {number} ")), "{line:?}");
        pod.container("app")?.sleeper.sleep()?;
    }
    ensure!(status(&pod)?.counters.wakes == 2 && pod.restarts("app")? == 0);
    Ok(())
}

fn a_forwarded_connection_outlives_a_sleep(cluster: &Cluster) -> Result<()> {
    let pod = sleeper(cluster)?;
    let (_forward, address) = forward(cluster, &pod)?;
    let mut kept = Client::default().connect(address)?;
    ask(&mut kept, address, 2)?;
    for number in [3, 4] {
        pod.container("app")?.sleeper.sleep()?;
        ask(&mut kept, address, number)?;
    }
    pod.container("app")?.sleeper.sleep()?;
    let answer = Client::default().get(address, "/")?;
    ensure!(answer.body.contains("\"count\": 5"), "{answer:?}");
    let status = status(&pod)?;
    ensure!(
        status.counters.wakes == 4 && status.last_wake.cause == "traffic",
        "{status:?}"
    );
    Ok(())
}

/// Asks on a connection that stays open; the answer has this number.
fn ask(connection: &mut TcpStream, address: SocketAddr, number: u64) -> Result<()> {
    write!(connection, "GET / HTTP/1.1\r\nHost: {address}\r\n\r\n").context("ask")?;
    let mut answer = String::new();
    // One object, in one line, ends it.
    while !answer.ends_with("}\n") {
        let mut bytes = [0; 4096];
        let length = connection.read(&mut bytes).context("read the answer")?;
        ensure!(length > 0, "the connection ended after {answer:?}");
        answer += &String::from_utf8_lossy(&bytes[..length]);
    }
    ensure!(
        answer.contains(&format!("\"count\": {number},")),
        "{answer:?}"
    );
    Ok(())
}
