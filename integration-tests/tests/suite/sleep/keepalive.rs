//! A peer that asks whether its connection is still there.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use podmotion_integration_tests::{App, Client, Depth, Node, Runtime};

use crate::Body;

/// Idle time before the first keepalive, and between them, in seconds.
const INTERVAL: u32 = 1;
/// Unanswered ones until the connection is given up.
const PROBES: u32 = 3;
/// Twice as long as a connection lives that nobody answers for.
const ASLEEP: Duration = Duration::from_secs(2 * (INTERVAL * (PROBES + 1)) as u64);

pub(super) const TESTS: &[(&str, Body)] = &[(
    "sleep::keepalive::a_peers_keepalives_are_answered_and_wake_nobody",
    a_peers_keepalives_are_answered_and_wake_nobody,
)];

fn a_peers_keepalives_are_answered_and_wake_nobody(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(App::counter())?;
    container.stdout()?.wait_for("listening")?;
    let mut stream = Client::default().connect(container.address(8080)?)?;
    ensure!(request(&mut stream)?.contains("\"count\": 1"));
    container.sleep()?;
    // From now on: while it falls asleep nobody answers, and a slow disk can make that last.
    setsockopt(&stream, sockopt::TcpKeepIdle, &INTERVAL)?;
    setsockopt(&stream, sockopt::TcpKeepInterval, &INTERVAL)?;
    setsockopt(&stream, sockopt::TcpKeepCount, &PROBES)?;
    setsockopt(&stream, sockopt::KeepAlive, &true)?;
    thread::sleep(ASLEEP);
    let status = container.status()?;
    ensure!(status.state == "asleep", "{status:?}");
    let answer = request(&mut stream).context("after the sleep")?;
    ensure!(answer.contains("\"count\": 2"), "{answer}");
    // The answer can be faster than the books about the packets.
    let status = container
        .sleeper()
        .wait_until("returned packets", |status| status.last_wake.packets > 0)?;
    ensure!(status.counters.wakes == 1, "{status:?}");
    // In light sleep the kernel still has the socket.
    let answered = match node.depth() {
        Depth::Light => status.packets.answered == 0,
        Depth::Deep => status.packets.answered > u64::from(PROBES),
    };
    ensure!(answered && status.packets.held >= 1, "{status:?}");
    Ok(())
}

/// One of several requests on a connection.
fn request(stream: &mut TcpStream) -> Result<String> {
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        .context("send the request")?;
    let mut answer = String::new();
    let mut bytes = [0; 4096];
    while !answer.contains("\r\n\r\n{") || !answer.ends_with("}\n") {
        let length = stream.read(&mut bytes).context("wait for the answer")?;
        ensure!(length > 0, "the connection ended after {answer:?}");
        answer.push_str(&String::from_utf8_lossy(&bytes[..length]));
    }
    Ok(answer)
}
