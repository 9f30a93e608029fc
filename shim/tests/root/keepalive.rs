//! Keepalives for connections whose end in the pod sleeps.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::gate::{Flow, Gate, Standstill};
use crate::hold::is_quiet;
use crate::rig::{A, LONG, Net, PORT, address};
use crate::sys::sequences;

/// Idle time before the first one and time between them.
const INTERVAL: u32 = 1;
const PROBES: u32 = 3;
/// Without an answer the connection has ended long before.
const ASLEEP: Duration = Duration::from_secs((INTERVAL * (PROBES + 3)) as u64);

struct Connection {
    client: TcpStream,
    server: TcpStream,
    flow: Flow,
}

fn connect(net: &Net, listener: &TcpListener, local: bool, ip: &str) -> Connection {
    let mut client = net.connect(local, address(ip, PORT));
    let (mut server, peer) = listener.accept().unwrap();
    // Not the state that it began with.
    client.write_all(b"ping").unwrap();
    server.read_exact(&mut [0; 4]).unwrap();
    server.write_all(b"pong!").unwrap();
    client.read_exact(&mut [0; 5]).unwrap();
    server.set_read_timeout(Some(LONG)).unwrap();
    let flow = Flow::new(server.local_addr().unwrap(), peer);
    Connection {
        client,
        server,
        flow,
    }
}

fn keep_alive(stream: &TcpStream) {
    setsockopt(stream, sockopt::TcpKeepIdle, &INTERVAL).unwrap();
    setsockopt(stream, sockopt::TcpKeepInterval, &INTERVAL).unwrap();
    setsockopt(stream, sockopt::TcpKeepCount, &PROBES).unwrap();
    setsockopt(stream, sockopt::KeepAlive, &true).unwrap();
}

fn standstill(stream: &TcpStream) -> Standstill {
    let (rcv_nxt, snd_nxt) = sequences(stream);
    Standstill {
        rcv_nxt,
        snd_nxt,
        window: 500,
    }
}

fn hold(gate: &mut Gate, connections: &[&Connection]) {
    let flows: Vec<_> = connections.iter().map(|c| c.flow).collect();
    gate.hold(A, &flows).unwrap();
}

pub fn peers_keep_connections_that_sleep() {
    let net = Net::new();
    let mut gate = net.gate();
    let listener = net
        .pod
        .run(|| TcpListener::bind(address("::", PORT)).unwrap());
    let mut connections: Vec<_> = [
        ("10.9.0.1", false),
        ("fd09::1", false),
        ("127.0.0.1", true),
        ("::1", true),
        ("10.9.0.1", true),
    ]
    .map(|(ip, local)| connect(&net, &listener, local, ip))
    .into();
    // Without timestamps there are no TCP options at all.
    let timestamps = |value: &[u8]| {
        net.client
            .run(|| std::fs::write("/proc/sys/net/ipv4/tcp_timestamps", value).unwrap());
    };
    timestamps(b"0");
    connections.push(connect(&net, &listener, false, "10.9.0.1"));
    timestamps(b"1");
    let unanswered = connect(&net, &listener, false, "10.9.0.1");
    let known: Vec<_> = connections
        .iter()
        .map(|c| (c.flow, standstill(&c.server)))
        .collect();
    let all: Vec<_> = connections.iter().chain([&unanswered]).collect();
    hold(&mut gate, &all);
    gate.answer_keepalives(A, &known).unwrap();
    for connection in &all {
        keep_alive(&connection.client);
    }
    thread::sleep(ASLEEP);
    for connection in &connections {
        assert!(is_quiet(&connection.client), "{:?}", connection.flow);
    }
    let counters = gate.counters().unwrap();
    let least = connections.len() as u64 * u64::from(PROBES);
    assert!(counters.answered > least, "{counters:?}");
    let error = (&unanswered.client).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    // The end of that one.
    assert_eq!(counters.held, 1, "{counters:?}");
    gate.release(A).unwrap();
    for Connection {
        client,
        server,
        flow,
    } in &mut connections
    {
        client.write_all(b"awake?").unwrap();
        let mut received = [0; 6];
        server.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"awake?", "{flow:?}");
        server.write_all(b"yes").unwrap();
        client.read_exact(&mut [0; 3]).unwrap();
    }
    assert_eq!(net.client.retransmissions(), 0);
}

pub fn two_sleeping_ends_do_not_answer_each_other() {
    let net = Net::new();
    let mut gate = net.gate();
    let listener = net
        .pod
        .run(|| TcpListener::bind(address("127.0.0.1", PORT)).unwrap());
    let connection = connect(&net, &listener, true, "127.0.0.1");
    let (server, client) = (
        standstill(&connection.server),
        standstill(&connection.client),
    );
    let back = Flow::new(connection.flow.remote, connection.flow.local);
    gate.hold(A, &[connection.flow, back]).unwrap();
    gate.answer_keepalives(A, &[(connection.flow, server), (back, client)])
        .unwrap();
    keep_alive(&connection.client);
    // No second one while this looks.
    setsockopt(&connection.client, sockopt::TcpKeepInterval, &60).unwrap();
    let deadline = Instant::now() + LONG;
    while gate.counters().unwrap().dropped == 0 {
        assert!(Instant::now() < deadline, "no answer came back");
        thread::yield_now();
    }
    // An answer to an answer comes within microseconds, and then thousands of them do.
    thread::sleep(Duration::from_millis(200));
    let counters = gate.counters().unwrap();
    assert_eq!((counters.answered, counters.held), (1, 0), "{counters:?}");
}
