//! What clients see of a container's sleep: nothing but time.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use podmotion_integration_tests::{
    App, Client, Container, Netns, Network, Node, PATIENCE, Response, Runtime, Status,
    ensure_woken_by,
};

use super::{count, counter, visit};
use crate::Body;

pub(super) const TESTS: &[(&str, Body)] = &[
    (
        "sleep::connections::first_of_each_family",
        first_of_each_family,
    ),
    (
        "sleep::connections::two_hundred_at_once",
        two_hundred_at_once,
    ),
    ("sleep::connections::during_the_dump", during_the_dump),
    ("sleep::connections::silent_client", silent_client),
    (
        "sleep::connections::client_that_gives_up",
        client_that_gives_up,
    ),
    ("sleep::connections::udp", udp),
    (
        "sleep::connections::idle_connection_survives",
        idle_connection_survives,
    ),
    (
        "sleep::connections::outward_connection_survives",
        outward_connection_survives,
    ),
    (
        "sleep::connections::closed_while_asleep",
        closed_while_asleep,
    ),
];

/// A client sends again what it has heard nothing of for that long (RFC 6298, 2.1), also where it is held.
const RESEND: Duration = Duration::from_secs(1);

/// No packet was lost: none was sent again, unless it was held for so long.
fn ensure_sent_once(answer: &Response, status: &Status) -> Result<()> {
    let held = Duration::from_micros(status.last_wake.first_packet_held_us);
    ensure!(
        answer.retransmits == 0 || held >= RESEND,
        "{answer:?}, held for {held:?}"
    );
    Ok(())
}

fn asleep(node: &Node) -> Result<Container> {
    let container = node.run(counter().mem_mb(5))?;
    container.stdout()?.wait_for("listening")?;
    container.sleep()?;
    Ok(container)
}

fn first_of_each_family(node: &Node, _: Runtime) -> Result<()> {
    let container = asleep(node)?;
    let own = Arc::clone(container.netns().context("no network")?);
    let neighbour = Arc::new(Netns::new()?);
    let (lo4, lo6) = (
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    );
    let cases = [
        ("node", Client::default(), container.address(8080)?),
        ("node", Client::default(), container.address6(8080)?),
        (
            "pod",
            Client::inside(Arc::clone(&neighbour)),
            container.address(8080)?,
        ),
        ("pod", Client::inside(neighbour), container.address6(8080)?),
        (
            "sibling",
            Client::inside(Arc::clone(&own)),
            SocketAddr::new(lo4, 8080),
        ),
        (
            "sibling",
            Client::inside(Arc::clone(&own)),
            SocketAddr::new(lo6, 8080),
        ),
        ("sibling", Client::inside(own), container.address(8080)?),
    ];
    let mut number = 0;
    for (who, client, address) in cases {
        container.sleep()?;
        number += 1;
        let what = || format!("a {who} to {address}");
        let answer = client.get(address, "/").with_context(what)?;
        ensure!(
            count(&answer).with_context(what)? == number,
            "{}: {answer:?}",
            what()
        );
        let status = container
            .sleeper()
            .wait_until("returned packets", |status| status.last_wake.packets > 0)?;
        ensure_sent_once(&answer, &status).with_context(what)?;
        ensure!(
            status.last_wake.cause == "traffic",
            "{}: {status:?}",
            what()
        );
    }
    Ok(())
}

fn two_hundred_at_once(node: &Node, _: Runtime) -> Result<()> {
    let container = asleep(node)?;
    let answers = Client::default().get_many(container.address(8080)?, "/", 200)?;
    let status = container
        .sleeper()
        .wait_until("returned packets", |status| status.last_wake.packets > 0)?;
    let mut numbers = Vec::new();
    for answer in answers {
        let answer = answer?;
        ensure_sent_once(&answer, &status)?;
        numbers.push(count(&answer)?);
    }
    numbers.sort_unstable();
    ensure!(numbers == (1..=200).collect::<Vec<_>>(), "{numbers:?}");
    ensure!(status.counters.wakes == 1, "{status:?}");
    Ok(())
}

fn during_the_dump(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(counter().mem_mb(30))?;
    container.stdout()?.wait_for("listening")?;
    let address = container.address(8080)?;
    for number in 1..=12 {
        // Each time at another moment of the dump, which takes some hundred milliseconds.
        let moment = Duration::from_millis((number - 1) * 12);
        let sleeper = container.sleeper();
        // The last request may have been answered before the dump began.
        sleeper.wake()?;
        let before = sleeper.wait_until("all of its memory", |status| {
            status.state == "running" && status.awake_reason.is_some()
        })?;
        let answer = thread::scope(|scope| {
            // Given up or not, both are right.
            let asking = scope.spawn(|| drop(sleeper.try_sleep()));
            let tried = |status: &Status| status.counters.sleeps + status.counters.sleeps_aborted;
            sleeper.wait_until("the dump", |status| {
                status.state == "falling-asleep" || tried(status) > tried(&before)
            })?;
            thread::sleep(moment);
            let answer = Client::default().get(address, "/");
            asking
                .join()
                .map_err(|_| anyhow!("the asking thread panicked"))?;
            answer.with_context(|| format!("{moment:?} after the dump began"))
        })?;
        ensure!(count(&answer)? == number, "{moment:?}: {answer:?}");
        ensure!(
            answer.retransmits == 0 || answer.connected >= RESEND,
            "{moment:?}: {answer:?}"
        );
    }
    let status = container.status()?;
    ensure!(
        status.counters.sleeps_failed == 0 && status.last_error.is_empty(),
        "{status:?}"
    );
    Ok(())
}

fn silent_client(node: &Node, _: Runtime) -> Result<()> {
    let container = asleep(node)?;
    let address = container.address(8080)?;
    let silent = Client::default().connect(address)?;
    let status = container.wait_state("running")?;
    ensure_woken_by("traffic", &status)?;
    // It has been accepted, says nothing, and is in nobody's way.
    container.sleep()?;
    ensure!(visit(address)? == 1);
    container.sleep()?;
    ensure!(ask(&silent, "/")?.contains("\"count\": 2"));
    Ok(())
}

/// One request on an open connection; returns the body of the answer, whose end is its line's.
pub(crate) fn ask(mut stream: &TcpStream, path: &str) -> Result<String> {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").context("send the request")?;
    let mut answer = Vec::new();
    while !(answer.ends_with(b"}\n")) {
        let mut part = [0; 4096];
        let length = stream.read(&mut part).context("read the answer")?;
        ensure!(
            length > 0,
            "the connection ended: {:?}",
            String::from_utf8_lossy(&answer)
        );
        answer.extend_from_slice(&part[..length]);
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn client_that_gives_up(node: &Node, _: Runtime) -> Result<()> {
    let container = asleep(node)?;
    let address = container.address(8080)?;
    // In the middle of the handshake, however short the wake.
    drop(begin_connection(address)?);
    ensure!(visit(address)? == 1);
    // With a request under way on a connection from before.
    let stream = Client::default().connect(address)?;
    ask(&stream, "/")?;
    container.sleep()?;
    (&stream)
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .context("send a request")?;
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).context("set linger")?;
    drop(stream);
    container.wait_state("running")?;
    let number = visit(address)?;
    ensure!(number == 3 || number == 4, "{number} requests were counted");
    container.sleep()?;
    // The request that was given up may be read only now, as one of an ended connection.
    let last = visit(address)?;
    ensure!(
        last == number + 1 || (number, last) == (3, 5),
        "{number}, then {last}"
    );
    Ok(())
}

/// Sends a SYN and does not wait for the answer.
fn begin_connection(address: SocketAddr) -> Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    match connect(&socket, &address) {
        Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        other => bail!("the connection did not wait: {other:?}"),
    }
}

fn udp(node: &Node, _: Runtime) -> Result<()> {
    let app = App::new(["python3", "/apps/udpecho.py"]).network(Network::Own);
    let container = node.run(app.annotation("scaledown-duration", "1h"))?;
    container.stdout()?.wait_for("listening")?;
    let mut number = 0;
    for address in [container.address(8080)?, container.address6(8080)?] {
        container.sleep()?;
        let any = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any).context("make a socket")?;
        socket
            .set_read_timeout(Some(PATIENCE))
            .context("set a timeout")?;
        socket.connect(address).context("connect")?;
        let port = socket.local_addr().context("read our address")?.port();
        for text in ["first", "second", "third"] {
            socket.send(text.as_bytes()).context("send")?;
        }
        for text in ["first", "second", "third"] {
            number += 1;
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer).context("receive")?;
            let answer = String::from_utf8_lossy(&buffer[..length]);
            let right = answer.starts_with(&format!("{number} "))
                && answer.ends_with(&format!(":{port} {text}"));
            ensure!(right, "answer {number} to {port} is {answer:?}");
        }
        let status = container.status()?;
        ensure_woken_by("traffic", &status)?;
    }
    Ok(())
}

/// Repeats what it reads, on one connection after the other and on one that it opens to `PEER`.
const ECHO: &str = r#"
import os, socket, threading
def echo(s):
    while data := s.recv(65536):
        s.sendall(data)
    s.close()
if peer := os.environ.get("PEER"):
    host, port = peer.split()
    threading.Thread(target=echo, args=(socket.create_connection((host, int(port))),)).start()
server = socket.create_server(("", 8080))
print("listening", flush=True)
while True:
    threading.Thread(target=echo, args=(server.accept()[0],)).start()
"#;

fn echo() -> App {
    App::new(["python3", "-c", ECHO])
        .network(Network::Own)
        .annotation("scaledown-duration", "1h")
}

/// Sends numbered lines with a sleep before each, and reads each back once.
fn talk_through_sleeps(container: &Container, stream: &TcpStream) -> Result<()> {
    stream
        .set_read_timeout(Some(PATIENCE))
        .context("set a timeout")?;
    let mut stream = stream;
    for number in 0..4 {
        container.sleep()?;
        let line = format!("line {number}\n");
        stream.write_all(line.as_bytes()).context("send")?;
        let mut back = vec![0; line.len()];
        stream
            .read_exact(&mut back)
            .with_context(|| format!("read line {number} back"))?;
        ensure!(
            back == line.as_bytes(),
            "{:?}",
            String::from_utf8_lossy(&back)
        );
    }
    // More than one window, in many segments: in order, whole, and once.
    container.sleep()?;
    let many: Vec<u8> = (0..200_000_u32).flat_map(u32::to_be_bytes).collect();
    let writer = stream;
    let back = thread::scope(|scope| -> Result<Vec<u8>> {
        let sending = scope.spawn(|| {
            (&*writer).write_all(&many)?;
            writer.shutdown(std::net::Shutdown::Write)
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).context("read to the end")?;
        let sent = sending.join().map_err(|_| anyhow!("the sender panicked"))?;
        sent.context("send")?;
        Ok(back)
    })?;
    ensure!(
        back == many,
        "{} bytes came back of {}",
        back.len(),
        many.len()
    );
    let status = container.status()?;
    ensure!(
        status.counters.wakes == 5 && status.last_wake.cause == "traffic",
        "{status:?}"
    );
    Ok(())
}

fn idle_connection_survives(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(echo())?;
    container.stdout()?.wait_for("listening")?;
    let stream = Client::default().connect(container.address(8080)?)?;
    talk_through_sleeps(&container, &stream)
}

fn outward_connection_survives(node: &Node, _: Runtime) -> Result<()> {
    // Makes the bridge, whose node's end it is reached by.
    let netns = Arc::new(Netns::new()?);
    let listener = TcpListener::bind("0.0.0.0:0").context("listen")?;
    let port = listener.local_addr().context("read our address")?.port();
    let peer = format!("{} {port}", Netns::node_ipv4());
    let container = node.run(echo().network(Network::Namespace(netns)).env("PEER", &peer))?;
    let (stream, _) = listener.accept().context("accept")?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    container.stdout()?.wait_for("listening")?;
    talk_through_sleeps(&container, &stream)
}

fn closed_while_asleep(node: &Node, _: Runtime) -> Result<()> {
    let container = node.run(echo())?;
    container.stdout()?.wait_for("listening")?;
    let stream = Client::default().connect(container.address(8080)?)?;
    (&stream).write_all(b"x").context("send")?;
    (&stream).read_exact(&mut [0]).context("receive")?;
    container.sleep()?;
    stream
        .shutdown(std::net::Shutdown::Write)
        .context("close")?;
    let mut rest = Vec::new();
    (&stream)
        .read_to_end(&mut rest)
        .context("wait for the other end")?;
    ensure!(rest.is_empty());
    container.sleep()
}
