//! What comes for a sleeping container waits, and nothing else does.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Backlog, listen, setsockopt, sockopt};
use podmotion_bpf::Method;
use podmotion_bpf::loader::{Build, load_and_pin_build, unpin};

use crate::gate::{Flow, Gate, Limits, Released};
use crate::rig::{
    A, B, LIMITS, LONG, Net, PORT, address, assert_clean, hold_for, wait_readable, wait_wanted,
};

const WAKE: Duration = Duration::from_millis(300);

/// A client connects while nobody listens, 300 ms pass, a listener comes, the hold ends.
fn connection_waits(ip: &'static str, local: bool, method: Option<Method>) {
    let net = Net::new();
    let mut gate = net.gate_with(LIMITS, method);
    let cookie = net.pod.cookie();
    let server = address(ip, PORT);
    gate.hold(A, &[]).unwrap();
    let before = net.side(local).retransmissions();
    thread::scope(|scope| {
        let client = scope.spawn(|| net.connect(local, server));
        wait_wanted(&mut gate, A);
        hold_for(&mut gate, WAKE);
        let listener = net.pod.run(|| TcpListener::bind(server).unwrap());
        let released = gate.release(A).unwrap();
        assert_eq!((released.frames, released.lost), (1, 0), "{released:?}");
        assert!(released.held_for.unwrap() >= WAKE, "{released:?}");
        let (mut accepted, peer) = listener.accept().unwrap();
        let mut client = client.join().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        accepted.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
    });
    assert_eq!(net.side(local).retransmissions(), before);
    drop(gate);
    assert_clean(&net, cookie);
}

pub fn connection_over_ipv4() {
    connection_waits("10.9.0.1", false, None);
}

pub fn connection_over_ipv6() {
    connection_waits("fd09::1", false, None);
}

pub fn connection_over_ipv4_loopback() {
    connection_waits("127.0.0.1", true, None);
}

pub fn connection_over_ipv6_loopback() {
    connection_waits("::1", true, None);
}

pub fn connection_from_the_pod_to_its_own_address() {
    connection_waits("10.9.0.1", true, None);
    connection_waits("fd09::1", true, None);
}

pub fn connection_with_clsact() {
    connection_waits("10.9.0.1", false, Some(Method::Clsact));
    connection_waits("::1", true, Some(Method::Clsact));
}

pub fn connection_with_the_program_for_older_kernels() {
    let net = Net::new();
    let pins = Path::new("/sys/fs/bpf/older/v1");
    load_and_pin_build(pins, Some(Build::Portable)).unwrap();
    let mut gate = Gate::open(net.pod.fd(), pins, LIMITS).unwrap();
    gate.set_ports(A, &BTreeSet::from([PORT])).unwrap();
    let server = address("10.9.0.1", PORT);
    let listener = net.pod.run(|| TcpListener::bind(server).unwrap());
    gate.hold(A, &[]).unwrap();
    thread::scope(|scope| {
        let client = scope.spawn(|| net.connect(false, server));
        wait_wanted(&mut gate, A);
        assert_eq!(gate.release(A).unwrap().frames, 1);
        listener.accept().unwrap();
        client.join().unwrap();
    });
    assert!(gate.last_activity(A).unwrap().is_some());
    drop(gate);
    unpin(pins).unwrap();
}

pub fn two_hundred_clients_at_once() {
    const CLIENTS: usize = 200;
    let net = Net::new();
    let mut gate = net.gate();
    gate.hold(A, &[]).unwrap();
    let server = address("10.9.0.1", PORT);
    let answered = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let mut answer = String::new();
                    let mut client = net.connect(false, server);
                    client.read_to_string(&mut answer).unwrap();
                    answer == client.local_addr().unwrap().to_string()
                })
            })
            .collect();
        hold_for(&mut gate, WAKE);
        let listener = net.pod.run(|| TcpListener::bind(server).unwrap());
        // The standard library's 128 is less than what comes.
        listen(&listener, Backlog::MAXCONN).unwrap();
        scope.spawn(move || {
            for _ in 0..CLIENTS {
                let (mut stream, peer) = listener.accept().unwrap();
                write!(stream, "{peer}").unwrap();
            }
        });
        let released = gate.release(A).unwrap();
        assert!(released.frames > 0, "{released:?}");
        clients
            .into_iter()
            .map(|client| client.join().unwrap())
            .filter(|answered| *answered)
            .count()
    });
    assert_eq!(answered, CLIENTS);
    assert_eq!(net.client.retransmissions(), 0);
}

/// A connection between the client and the pod, and the gate holding it.
fn held_connection(net: &Net, gate: &mut Gate, ip: &str, local: bool) -> (TcpStream, TcpStream) {
    let server = address(ip, PORT);
    let listener = net.pod.run(|| TcpListener::bind(server).unwrap());
    let client = net.connect(local, server);
    let (accepted, peer) = listener.accept().unwrap();
    accepted.set_read_timeout(Some(LONG)).unwrap();
    gate.hold(A, &[Flow::new(server, peer)]).unwrap();
    (client, accepted)
}

pub fn is_quiet(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let quiet =
        matches!(stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    quiet
}

pub fn data_on_an_established_connection_is_delivered_once() {
    let net = Net::new();
    let mut gate = net.gate();
    let (mut client, mut server) = held_connection(&net, &mut gate, "10.9.0.1", false);
    client.write_all(b"once").unwrap();
    wait_wanted(&mut gate, A);
    hold_for(&mut gate, WAKE);
    assert!(is_quiet(&server));
    gate.release(A).unwrap();
    drop(client);
    let mut received = Vec::new();
    server.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"once");
}

pub fn connection_without_a_socket_is_not_reset() {
    let net = Net::new();
    let mut gate = net.gate();
    let (mut client, server) = held_connection(&net, &mut gate, "fd09::1", false);
    // As CRIU leaves it: gone without a word.
    setsockopt(&server, sockopt::TcpRepair, &1).unwrap();
    drop(server);
    client.write_all(b"anybody there?").unwrap();
    wait_wanted(&mut gate, A);
    hold_for(&mut gate, WAKE);
    assert!(is_quiet(&client));
    // Nobody has restored it: now the kernel answers.
    gate.release(A).unwrap();
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

pub fn end_of_an_established_connection_wakes() {
    let net = Net::new();
    let mut gate = net.gate();
    let (client, mut server) = held_connection(&net, &mut gate, "10.9.0.1", false);
    drop(client);
    wait_wanted(&mut gate, A);
    gate.release(A).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
}

pub fn bare_acknowledgement_is_dropped_and_wakes_nobody() {
    let net = Net::new();
    let mut gate = net.gate();
    let (mut client, mut server) = held_connection(&net, &mut gate, "10.9.0.1", false);
    server.write_all(b"x").unwrap();
    client.read_exact(&mut [0]).unwrap();
    let deadline = Instant::now() + LONG;
    while gate.counters().unwrap().dropped == 0 {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
    assert_eq!(gate.read_held().unwrap(), BTreeSet::new());
    assert_eq!(gate.counters().unwrap().held, 0);
}

fn datagram_waits(ip: &str, local: bool, size: usize) {
    let net = Net::new();
    let mut gate = net.gate();
    gate.hold(A, &[]).unwrap();
    let to = address(ip, PORT);
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let server = net.udp(true, &to.to_string());
    let client = net.udp(local, any);
    let data: Vec<u8> = (0..size).map(|at| at as u8).collect();
    client.send_to(&data, to).unwrap();
    wait_wanted(&mut gate, A);
    hold_for(&mut gate, Duration::from_millis(50));
    server.set_nonblocking(true).unwrap();
    assert!(server.recv(&mut [0]).is_err());
    server.set_nonblocking(false).unwrap();
    gate.release(A).unwrap();
    let mut received = vec![0; size + 1];
    let (length, from) = server.recv_from(&mut received).unwrap();
    assert!(received[..length] == data, "{length} of {size} bytes");
    assert_eq!(from.port(), client.local_addr().unwrap().port());
}

pub fn datagram_is_held_and_delivered() {
    datagram_waits("10.9.0.1", false, 100);
    datagram_waits("fd09::1", false, 100);
    datagram_waits("127.0.0.1", true, 100);
}

pub fn datagram_in_fragments_is_delivered_whole() {
    datagram_waits("10.9.0.1", false, 5000);
    datagram_waits("fd09::1", false, 5000);
    datagram_waits("127.0.0.1", true, 65000);
    datagram_waits("::1", true, 65000);
}

fn large_transfer_waits(ip: &str, local: bool) {
    const SIZE: usize = 4 << 20;
    let net = Net::new();
    let mut gate = net.gate();
    let (mut client, mut server) = held_connection(&net, &mut gate, ip, local);
    let data: Vec<u8> = (0..SIZE).map(|at| (at / 7) as u8).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            client.write_all(&data).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
        });
        wait_wanted(&mut gate, A);
        hold_for(&mut gate, Duration::from_millis(50));
        let released = gate.release(A).unwrap();
        assert!(released.bytes > 10_000, "{released:?}");
        let mut received = Vec::new();
        server.read_to_end(&mut received).unwrap();
        assert!(received == data, "{} of {SIZE} bytes", received.len());
    });
}

pub fn large_segments_are_delivered() {
    large_transfer_waits("10.9.0.1", false);
    large_transfer_waits("fd09::1", false);
    large_transfer_waits("127.0.0.1", true);
    large_transfer_waits("::1", true);
}

pub fn other_ports_are_not_affected() {
    let net = Net::new();
    let mut gate = net.gate();
    gate.hold(A, &[]).unwrap();
    let other = address("10.9.0.1", 9090);
    let listener = net.pod.run(|| TcpListener::bind(other).unwrap());
    let mut client = net.connect(false, other);
    let (mut accepted, _) = listener.accept().unwrap();
    client.write_all(b"hi").unwrap();
    accepted.read_exact(&mut [0; 2]).unwrap();
    // A port that nobody listens on is still refused at once.
    let refused = net
        .client
        .run(|| TcpStream::connect_timeout(&address("10.9.0.1", 9091), LONG));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(gate.read_held().unwrap(), BTreeSet::new());
}

/// Containers A and B are held, B with port 9090.
fn two_asleep(net: &Net) -> Gate {
    let mut gate = net.gate();
    gate.set_ports(B, &BTreeSet::from([9090])).unwrap();
    gate.hold(A, &[]).unwrap();
    gate.hold(B, &[]).unwrap();
    gate
}

pub fn containers_of_a_pod_wake_one_by_one() {
    let net = Net::new();
    let mut gate = two_asleep(&net);
    let bind = |port| {
        net.pod
            .run(|| TcpListener::bind(address("10.9.0.1", port)).unwrap())
    };
    let (listener_a, listener_b) = (bind(PORT), bind(9090));
    thread::scope(|scope| {
        let b = scope.spawn(|| net.connect(false, address("10.9.0.1", 9090)));
        wait_wanted(&mut gate, B);
        let a = scope.spawn(|| net.connect(false, address("10.9.0.1", PORT)));
        wait_wanted(&mut gate, A);
        assert_eq!(gate.release(A).unwrap().frames, 1);
        listener_a.accept().unwrap();
        a.join().unwrap();
        // Through A's packets B still sleeps, and A serves while B does.
        assert!(net.tap_is_up());
        drop(net.connect(false, address("10.9.0.1", PORT)));
        assert_eq!(gate.read_held().unwrap(), BTreeSet::new());
        assert_eq!(gate.release(B).unwrap().frames, 1);
        listener_b.accept().unwrap();
        b.join().unwrap();
    });
}

/// The end of one container's hold reads what has come for another one, which nobody is told of then.
pub fn what_a_release_reads_for_another_container_wakes_that() {
    let net = Net::new();
    let mut gate = two_asleep(&net);
    let client = net.udp(false, "0.0.0.0:0");
    client.send_to(b"x", address("10.9.0.1", 9090)).unwrap();
    let tap = gate.tap_fd().unwrap();
    let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(5000_u16)).unwrap(), 1);
    assert_eq!(gate.release(A).unwrap().frames, 0);
    assert_eq!(gate.take_wanted(), BTreeSet::from([B]));
    assert_eq!(gate.release(B).unwrap().frames, 1);
}

/// A sleeping container has a connection on a port where another one of the pod listens by now.
pub fn connection_on_a_port_that_another_container_has() {
    let net = Net::new();
    let mut gate = net.gate();
    gate.set_ports(A, &BTreeSet::new()).unwrap();
    gate.set_ports(B, &BTreeSet::from([PORT])).unwrap();
    let (mut client, mut server) = held_connection(&net, &mut gate, "10.9.0.1", false);
    client.write_all(b"for A").unwrap();
    wait_wanted(&mut gate, A);
    assert!(is_quiet(&server));
    let listener = net
        .pod
        .run(|| TcpListener::bind(address("fd09::1", PORT)).unwrap());
    let mut other = net.connect(false, address("fd09::1", PORT));
    other.write_all(b"for B").unwrap();
    listener
        .accept()
        .unwrap()
        .0
        .read_exact(&mut [0; 5])
        .unwrap();
    assert!(gate.last_activity(B).unwrap().is_some());
    assert_eq!(gate.release(A).unwrap().frames, 1);
    server.read_exact(&mut [0; 5]).unwrap();
}

pub fn frames_beyond_the_limit_are_counted() {
    let net = Net::new();
    let limits = Limits {
        packets: 2,
        bytes: 1 << 20,
    };
    let mut gate = net.gate_with(limits, None);
    gate.hold(A, &[]).unwrap();
    let client = net.udp(false, "0.0.0.0:0");
    for _ in 0..5 {
        client.send_to(b"x", address("10.9.0.1", PORT)).unwrap();
    }
    // The first one waits for the pod's hardware address, and the rest behind it.
    let deadline = Instant::now() + LONG;
    while gate.counters().unwrap().held < 5 {
        assert!(Instant::now() < deadline, "{:?}", gate.counters());
        thread::yield_now();
    }
    let released = gate.release(A).unwrap();
    let expected = Released {
        frames: 2,
        bytes: released.bytes,
        lost: 3,
        held_for: released.held_for,
        packets: released.packets,
    };
    assert_eq!(released, expected);
}

/// Holds come and go while clients connect: every one of them gets through at once, whatever moment
/// it hits.
pub fn no_packet_is_lost_between_hold_and_release() {
    const SERVED: usize = 150;
    const HELD: u64 = 50;
    let net = Net::new();
    let mut gate = net.gate();
    let server = address("10.9.0.1", PORT);
    let listener = net.pod.run(|| TcpListener::bind(server).unwrap());
    let (done, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                stream.write_all(&byte).unwrap();
                if byte == [0] {
                    return;
                }
            }
        });
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let mut client = net.connect(false, server);
                        client.write_all(&[1]).unwrap();
                        client.read_exact(&mut [0]).unwrap();
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let held = |gate: &Gate| gate.counters().unwrap().held;
        while served.load(Ordering::Relaxed) < SERVED || held(&gate) < HELD {
            gate.hold(A, &[]).unwrap();
            gate.release(A).unwrap();
            // What a program put into the tap when the hold was over.
            gate.read_held().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        while clients.iter().any(|client| !client.is_finished()) {
            wait_readable(&gate, Duration::from_millis(10));
            gate.read_held().unwrap();
        }
        for client in clients {
            client.join().unwrap();
        }
        let mut last = net.connect(false, server);
        last.write_all(&[0]).unwrap();
        last.read_exact(&mut [0]).unwrap();
        let counters = gate.counters().unwrap();
        assert_eq!(counters.held, counters.returned);
    });
    assert_eq!(net.client.retransmissions(), 0);
}
