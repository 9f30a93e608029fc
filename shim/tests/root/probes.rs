//! Probes: who is taken for a kubelet, that they are not use, and where they go.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use podmotion_bpf::loader::{load_and_pin, unpin};
use podmotion_bpf::{Maps, PortFlags, ProbeKey};

use crate::gate::{
    Gate, GateError, NodeRules,
    sockets::{Sockets, Wanted},
};
use crate::kubelet::{Connection, Likeness, admit};
use crate::rig::{A, B, LIMITS, Net, PORT, address, held, maps, pins, wait_wanted};

const ADDRESSES: [&str; 2] = ["10.9.0.1", "fd09::1"];

fn is_noted(maps: &Maps, server: SocketAddr, client: SocketAddr) -> bool {
    let key = ProbeKey::from_outside(server, client);
    maps.probes.get(&key).unwrap().is_some()
}

fn listen(net: &Net, server: SocketAddr) -> TcpListener {
    net.pod.run(|| TcpListener::bind(server).unwrap())
}

pub fn connections_of_kubelets_are_noted_and_no_others() {
    let net = Net::new();
    admit(pins());
    for ip in ADDRESSES {
        let server = address(ip, PORT);
        let _listener = listen(&net, server);
        for (name, likeness, expected) in [
            ("kubelet", Likeness::Same, true),
            ("kubelets", Likeness::Same, false),
            ("kubelet", Likeness::OtherMounts, false),
            ("kubelet", Likeness::OtherPids, false),
            ("kubelet", Likeness::OtherUser, false),
        ] {
            let client = Connection::open_as(&net.client, server, name, likeness);
            let noted = is_noted(&maps(), server, client.local);
            assert_eq!(noted, expected, "{ip} {name} {likeness:?}");
        }
    }
}

pub fn programs_of_two_installations_note_beside_each_other() {
    let net = Net::new();
    let other = Path::new("/sys/fs/bpf/beside/v1");
    assert!(load_and_pin(other).unwrap().without_probes.is_none());
    admit(other);
    let server = address("10.9.0.1", PORT);
    let _listener = listen(&net, server);
    let client = Connection::open(&net.client, server);
    assert!(is_noted(&maps(), server, client.local));
    assert!(is_noted(&Maps::open(other).unwrap(), server, client.local));
    unpin(other).unwrap();
    let client = Connection::open(&net.client, server);
    assert!(is_noted(&maps(), server, client.local));
}

pub fn a_node_that_does_not_tell_probes_still_ignores() {
    let pins = Path::new("/sys/fs/bpf/untold/v1");
    load_and_pin(pins).unwrap();
    fs::remove_file(pins.join("kubelets")).unwrap();
    let rules = NodeRules {
        kubelets: vec!["kubelet".into()],
        ignored_networks: vec![([10, 9, 0, 2].into(), 32)],
        ..NodeRules::default()
    };
    let error = rules.tell(pins).unwrap_err();
    assert!(matches!(error, GateError::NoProbes(_)), "{error:?}");
    let net = Net::new();
    let mut gate = Gate::open(net.pod.fd(), pins, LIMITS).unwrap();
    gate.set_ports(A, &BTreeSet::from([PORT])).unwrap();
    let listener = listen(&net, address("10.9.0.1", PORT));
    drop(net.connect(false, address("10.9.0.1", PORT)));
    listener.accept().unwrap();
    assert_eq!(gate.last_activity(A).unwrap(), None);
    drop(gate);
    unpin(pins).unwrap();
}

/// A client whose address is known before it connects.
fn bound(local: SocketAddr) -> TcpStream {
    let family = match local {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(local)).unwrap();
    TcpStream::from(socket)
}

fn connected(socket: TcpStream, server: SocketAddr) -> TcpStream {
    connect(socket.as_raw_fd(), &SockaddrStorage::from(server)).unwrap();
    socket
}

/// A whole probe that the application answers.
fn probe(net: &Net, listener: &TcpListener) {
    let server = listener.local_addr().unwrap();
    let mut kubelet = Connection::open(&net.client, server);
    let (mut accepted, _) = listener.accept().unwrap();
    kubelet.write(b"healthy?");
    accepted.read_exact(&mut [0; 8]).unwrap();
    accepted.write_all(b"yes").unwrap();
    kubelet.read(&mut [0; 3]);
    kubelet.close();
    assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
}

pub fn probes_are_not_use() {
    for ip in ADDRESSES {
        let net = Net::new();
        let mut gate = net.gate();
        let managed = listen(&net, address(ip, PORT));
        let other = listen(&net, address(ip, 9090));
        probe(&net, &managed);
        probe(&net, &other);
        assert_eq!(gate.last_activity(A).unwrap(), None, "{ip}");
        assert_eq!(gate.last_other_activity().unwrap(), None, "{ip}");
        gate.set_flags(PORT, PortFlags::COUNT_PROBES).unwrap();
        probe(&net, &managed);
        assert!(gate.last_activity(A).unwrap().is_some(), "{ip}");
        drop(net.connect(false, address(ip, 9090)));
        assert!(gate.last_other_activity().unwrap().is_some(), "{ip}");
    }
}

/// An application that a kubelet waits for.
struct Asked {
    gate: Gate,
    listener: TcpListener,
    kubelet: Connection,
    /// The application's end.
    probe: TcpStream,
    seen: Sockets,
}

fn asked(net: &Net) -> Asked {
    let mut gate = Gate::open(net.pod.fd(), pins(), LIMITS).unwrap();
    gate.set_ports(A, &BTreeSet::from([PORT])).unwrap();
    admit(pins());
    let server = address("10.9.0.1", PORT);
    let listener = listen(net, server);
    let mut kubelet = Connection::open(&net.client, server);
    let (mut probe, _) = listener.accept().unwrap();
    kubelet.write(b"healthy?");
    probe.read_exact(&mut [0; 8]).unwrap();
    let seen = gate.sockets(&held(), Wanted::Own).unwrap();
    assert_eq!(seen.unanswered.len(), 1, "{seen:?}");
    Asked {
        gate,
        listener,
        kubelet,
        probe,
        seen,
    }
}

pub fn a_probe_that_waits_for_its_answer_is_no_request() {
    let net = Net::new();
    let Asked {
        mut gate,
        listener,
        seen,
        kubelet: _kubelet,
        probe: _probe,
    } = asked(&net);
    assert_eq!(gate.youngest_request(&seen).unwrap(), None);
    let mut client = net.connect(false, listener.local_addr().unwrap());
    let (mut request, _) = listener.accept().unwrap();
    client.write_all(b"please").unwrap();
    request.read_exact(&mut [0; 6]).unwrap();
    let seen = gate.sockets(&held(), Wanted::Own).unwrap();
    assert_eq!(seen.unanswered.len(), 2, "{seen:?}");
    assert!(gate.youngest_request(&seen).unwrap().is_some());
}

pub fn a_probe_that_is_answered_while_one_looks_is_no_request() {
    let net = Net::new();
    let Asked {
        gate,
        listener: _listener,
        mut kubelet,
        mut probe,
        seen,
    } = asked(&net);
    probe.write_all(b"yes").unwrap();
    kubelet.read(&mut [0; 3]);
    kubelet.close();
    assert_eq!(probe.read(&mut [0]).unwrap(), 0);
    assert_eq!(gate.youngest_request(&seen).unwrap(), None);
}

pub fn pauses_between_probes_are_told() {
    let net = Net::new();
    let mut gate = net.gate();
    let listener = listen(&net, address("10.9.0.1", PORT));
    drop(net.connect(false, address("10.9.0.1", PORT)));
    listener.accept().unwrap();
    assert!(gate.probes(A).unwrap().is_empty());
    // Also while the port is in use.
    probe(&net, &listener);
    let first = gate.probes(A).unwrap()[&PORT];
    assert_eq!(first.gap, None);
    thread::sleep(Duration::from_millis(100));
    probe(&net, &listener);
    let second = gate.probes(A).unwrap()[&PORT];
    assert_eq!(second.gap, Some(second.last - first.last));
    probe(&net, &listener);
    let third = gate.probes(A).unwrap()[&PORT];
    let before = second.gap.unwrap();
    let faded = before - before / 4;
    let gap = third.gap.unwrap();
    let expected = faded.max(third.last - second.last);
    assert!(
        gap.abs_diff(expected) < Duration::from_nanos(10),
        "{gap:?} {expected:?}"
    );
    // What is told about a port outlives a hold.
    gate.hold(A, &[]).unwrap();
    gate.release(A).unwrap();
    assert_eq!(gate.probes(A).unwrap()[&PORT], third);
}

/// A gate with a responder, which takes probes over both protocols.
fn steering(net: &Net) -> (Gate, TcpListener) {
    let mut gate = net.gate();
    // A socket for IPv6 takes IPv4 too, also where there is no other address.
    let responder = listen(net, address("::ffff:127.0.0.1", 0));
    gate.start_steering(responder.as_fd()).unwrap();
    gate.set_flags(PORT, PortFlags::STEER).unwrap();
    (gate, responder)
}

/// A whole probe that the responder answers.
fn steered_probe(net: &Net, responder: &TcpListener, server: SocketAddr) {
    let mut kubelet = Connection::open(&net.client, server);
    let (mut accepted, _) = responder.accept().unwrap();
    let local = accepted.local_addr().unwrap();
    assert_eq!(
        (local.ip().to_canonical(), local.port()),
        (server.ip(), server.port())
    );
    kubelet.write(b"healthy?");
    accepted.read_exact(&mut [0; 8]).unwrap();
    accepted.write_all(b"yes").unwrap();
    kubelet.read(&mut [0; 3]);
    kubelet.close();
    assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
}

fn nobody_waits(listener: &TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let error = listener.accept().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    listener.set_nonblocking(false).unwrap();
}

pub fn probes_of_a_sleeping_container_go_to_the_responder() {
    for ip in ADDRESSES {
        let net = Net::new();
        let (mut gate, responder) = steering(&net);
        let server = address(ip, PORT);
        gate.hold(A, &[]).unwrap();
        // As in deep sleep, where nobody listens, and then as in light sleep, where nobody accepts.
        steered_probe(&net, &responder, server);
        let listener = listen(&net, server);
        steered_probe(&net, &responder, server);
        assert!(gate.read_held().unwrap().is_empty());
        assert_eq!(gate.last_activity(A).unwrap(), None);
        assert_eq!(gate.counters().unwrap().held, 0);
        nobody_waits(&listener);
        thread::scope(|scope| {
            let client = scope.spawn(|| net.connect(false, server));
            wait_wanted(&mut gate, A);
            gate.release(A).unwrap();
            listener.accept().unwrap();
            client.join().unwrap();
        });
        nobody_waits(&responder);
        // Another port's probes are not for it.
        let other = listen(&net, address(ip, 9090));
        probe(&net, &other);
    }
}

pub fn probes_of_an_awake_container_go_to_the_responder_if_told() {
    let net = Net::new();
    let (mut gate, responder) = steering(&net);
    let server = address("10.9.0.1", PORT);
    let listener = listen(&net, server);
    steered_probe(&net, &responder, server);
    assert_eq!(gate.last_activity(A).unwrap(), None);
    let client = net.connect(false, server);
    listener.accept().unwrap();
    drop(client);
    gate.set_flags(PORT, PortFlags::NONE).unwrap();
    probe(&net, &listener);
    nobody_waits(&responder);
    // A connection that was steered stays where it is.
    gate.set_flags(PORT, PortFlags::STEER).unwrap();
    let mut kubelet = Connection::open(&net.client, server);
    let (mut accepted, _) = responder.accept().unwrap();
    gate.set_flags(PORT, PortFlags::NONE).unwrap();
    gate.hold(A, &[]).unwrap();
    kubelet.write(b"x");
    accepted.read_exact(&mut [0]).unwrap();
    assert!(gate.read_held().unwrap().is_empty());
}

pub fn probes_of_ports_that_do_not_wake_go_to_the_responder_and_nothing_else_does() {
    let net = Net::new();
    let (mut gate, responder) = steering(&net);
    let server = address("10.9.0.1", 9090);
    let listener = listen(&net, server);
    gate.set_probed(A, &BTreeSet::from([PORT, 9090])).unwrap();
    gate.set_flags(9090, PortFlags::STEER).unwrap();
    gate.hold(A, &[]).unwrap();
    steered_probe(&net, &responder, server);
    assert!(gate.probes(A).unwrap().contains_key(&9090));
    // To anybody else it is as if the gate knew nothing of it.
    let client = net.connect(false, server);
    listener.accept().unwrap();
    drop(client);
    assert!(gate.read_held().unwrap().is_empty());
    assert_eq!(gate.last_activity(A).unwrap(), None);
    // Another container has it for its own now.
    gate.set_ports(B, &BTreeSet::from([9090])).unwrap();
    probe(&net, &listener);
    gate.set_ports(B, &BTreeSet::new()).unwrap();
    gate.set_probed(A, &BTreeSet::new()).unwrap();
    probe(&net, &listener);
    nobody_waits(&responder);
}

pub fn without_a_responder_probes_wait_like_others() {
    let net = Net::new();
    let (mut gate, responder) = steering(&net);
    drop(responder);
    gate.stop_steering().unwrap();
    let server = address("10.9.0.1", PORT);
    gate.set_flags(PORT, PortFlags::STEER).unwrap();
    gate.hold(A, &[]).unwrap();
    let mut kubelet = Connection::begin(&net.client, server, "kubelet", Likeness::Same);
    wait_wanted(&mut gate, A);
    let listener = listen(&net, server);
    gate.release(A).unwrap();
    listener.accept().unwrap();
    kubelet.wait();
}

pub fn what_the_shim_opens_itself_is_not_use_and_not_steered() {
    let net = Net::new();
    let (mut gate, responder) = steering(&net);
    for ip in ["127.0.0.1", "::1"] {
        let server = address(ip, PORT);
        let listener = listen(&net, server);
        let socket = net.pod.run(|| bound(address(ip, 0)));
        let local = socket.local_addr().unwrap();
        gate.note_own_probe(local, server).unwrap();
        let mut client = connected(socket, server);
        let (mut accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer, local);
        client.write_all(b"healthy?").unwrap();
        accepted.read_exact(&mut [0; 8]).unwrap();
        accepted.write_all(b"yes").unwrap();
        client.read_exact(&mut [0; 3]).unwrap();
        drop((client, accepted));
        assert_eq!(gate.last_activity(A).unwrap(), None, "{ip}");
        assert_eq!(gate.last_other_activity().unwrap(), None, "{ip}");
        assert!(gate.probes(A).unwrap().is_empty());
        nobody_waits(&responder);
    }
    let listener = listen(&net, address("127.0.0.2", PORT));
    drop(net.connect(true, address("127.0.0.2", PORT)));
    listener.accept().unwrap();
    assert!(gate.last_activity(A).unwrap().is_some());
}

/// Such as that of a client whose address the node has replaced by its own.
pub fn a_later_connection_with_the_same_addresses_is_no_probe() {
    let net = Net::new();
    let gate = net.gate();
    let server = address("10.9.0.1", PORT);
    let listener = listen(&net, server);
    let kubelet = Connection::open(&net.client, server);
    let local = kubelet.local;
    // The server closes first: the client's port is free at once.
    drop(listener.accept().unwrap());
    kubelet.close();
    assert_eq!(gate.last_activity(A).unwrap(), None);
    let client = connected(net.client.run(|| bound(local)), server);
    listener.accept().unwrap();
    assert!(gate.last_activity(A).unwrap().is_some());
    assert!(!is_noted(&maps(), server, local));
    drop(client);
}
