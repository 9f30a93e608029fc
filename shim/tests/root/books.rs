//! What the gate notes, and that it takes everything back.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use podmotion_bpf::Method;

use crate::gate::{
    self, Ends, Flow, Gate, GateError,
    sockets::{self, Wanted},
};
use crate::rig::{A, B, LIMITS, Net, PORT, address, assert_clean, held, maps, pins, wait_wanted};
use crate::sys::mptcp_listener;

/// The clock that the programs read.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
        .unwrap()
        .into()
}

/// Waits until a use is noted again: the programs note one in 50 ms.
fn tick() {
    let before = now();
    while now() < before + Duration::from_millis(50) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn activity_is_what_uses_the_container() {
    let net = Net::new();
    let gate = net.gate();
    let server = address("10.9.0.1", PORT);
    assert_eq!(gate.last_activity(A).unwrap(), None);
    let listener = net.pod.run(|| TcpListener::bind(server).unwrap());
    let before = now();
    let mut client = net.connect(false, server);
    let connected = gate.last_activity(A).unwrap().unwrap();
    assert!(connected >= before && connected <= now());
    let (mut accepted, _) = listener.accept().unwrap();
    // The client acknowledges this, and nothing else.
    accepted.write_all(b"x").unwrap();
    std::io::Read::read_exact(&mut client, &mut [0]).unwrap();
    assert_eq!(gate.last_activity(A).unwrap(), Some(connected));
    tick();
    client.write_all(b"y").unwrap();
    std::io::Read::read_exact(&mut accepted, &mut [0]).unwrap();
    let payload = gate.last_activity(A).unwrap().unwrap();
    assert!(payload > connected);
    let datagram = net.udp(false, "0.0.0.0:0");
    let receiver = net.udp(true, &server.to_string());
    tick();
    datagram.send_to(b"z", server).unwrap();
    receiver.recv(&mut [0]).unwrap();
    assert!(gate.last_activity(A).unwrap().unwrap() > payload);
    assert_eq!(gate.last_other_activity().unwrap(), None);
    assert_eq!(gate.last_activity(B).unwrap(), None);
}

pub fn activity_of_connections_that_the_pod_opened() {
    let net = Net::new();
    let gate = net.gate();
    let server = address("10.9.0.2", 5432);
    let listener = net.client.run(|| TcpListener::bind(server).unwrap());
    let client = net.pod.run(|| TcpStream::connect(server).unwrap());
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.write_all(b"row").unwrap();
    client.peek(&mut [0]).unwrap();
    assert!(gate.last_other_activity().unwrap().unwrap() <= now());
    assert_eq!(gate.last_activity(A).unwrap(), None);
}

pub fn ports_are_replaced_and_kept_apart() {
    let net = Net::new();
    let mut gate = net.gate();
    let taken = gate.set_ports(B, &BTreeSet::from([1, PORT]));
    assert!(
        matches!(
            taken,
            Err(GateError::PortTaken {
                port: PORT,
                owner: A
            })
        ),
        "{taken:?}"
    );
    let many = gate.set_ports(B, &(20_000..21_025).collect());
    assert!(
        matches!(many, Err(GateError::TooManyPorts { ports: 1025 })),
        "{many:?}"
    );
    gate.set_ports(A, &BTreeSet::from([9090])).unwrap();
    gate.set_ports(B, &BTreeSet::from([PORT])).unwrap();
    gate.hold(B, &[]).unwrap();
    let client = net.udp(false, "0.0.0.0:0");
    client.send_to(b"x", address("10.9.0.1", PORT)).unwrap();
    wait_wanted(&mut gate, B);
    assert_eq!(gate.remove(B).unwrap().frames, 1);
    assert_eq!(
        maps()
            .ports
            .keys()
            .unwrap()
            .iter()
            .filter(|k| k.netns() == net.pod.cookie())
            .count(),
        2
    );
}

pub fn one_pod_does_not_fill_the_nodes_map_of_connections() {
    let net = Net::new();
    let mut gate = net.gate();
    let flow = |number: u32| {
        let client = [10, 9, (number >> 8) as u8, number as u8];
        Flow::new(address("10.9.0.1", PORT), (client, 40000).into())
    };
    let held = || {
        let keys = maps().flows.keys().unwrap();
        keys.iter()
            .filter(|key| key.netns() == net.pod.cookie())
            .count()
    };
    let most: Vec<_> = (0..8192).map(flow).collect();
    gate.hold(A, &most).unwrap();
    assert_eq!(held(), 8192);
    let more = gate.add_flows(A, &[most[0], flow(8192)], Ends::Gone);
    assert!(
        matches!(
            more,
            Err(GateError::TooManyConnections { connections: 8193 })
        ),
        "{more:?}"
    );
    assert_eq!(held(), 8192);
    gate.add_flows(A, &most, Ends::Alive).unwrap();
    gate.release(A).unwrap();
    assert_eq!(held(), 0);
    gate.hold(B, &[flow(8192)]).unwrap();
    assert_eq!(held(), 1);
}

fn takes_everything_back(method: Option<Method>) {
    let net = Net::new();
    let mut gate = net.gate_with(LIMITS, method);
    let cookie = net.pod.cookie();
    let flow = Flow::new(address("10.9.0.1", PORT), address("10.9.0.2", 40000));
    gate.hold(A, &[flow]).unwrap();
    let tap = gate.tap_fd();
    assert!(net.pod.output("ip -o link").contains("podmotion0"));
    assert_eq!(net.pod.output("ip -o -6 addr show dev podmotion0"), "");
    drop(gate);
    assert_clean(&net, cookie);
    drop(tap);
}

/// Awake the tap is there, and nothing can be seen of it or done with it. That it stays up spares each sleep and each
/// wake the kernel's network lock.
pub fn between_two_holds_the_tap_stays_and_is_told_to_nobody() {
    let net = Net::new();
    let mut gate = net.gate();
    let cookie = net.pod.cookie();
    let told = || maps().netns.get(&cookie).unwrap().unwrap().tap_ifindex;
    let links = || net.pod.output("ip -o -s link show dev podmotion0");
    let mut first = String::new();
    for _ in 0..3 {
        gate.hold(A, &[]).unwrap();
        assert!(net.tap_is_up() && told() != 0);
        if first.is_empty() {
            first = links();
        }
        gate.release(A).unwrap();
        assert!(net.tap_is_up() && told() == 0);
        // Nothing has been sent through it either.
        assert_eq!(links(), first);
        assert_eq!(net.pod.output("ip -o addr show dev podmotion0"), "");
    }
    assert_eq!(net.pod.output("ip -o link").lines().count(), 3);
}

pub fn a_tap_that_the_pod_has_taken_away_is_made_again() {
    for command in ["ip link delete podmotion0", "ip link set podmotion0 down"] {
        let net = Net::new();
        let mut gate = net.gate();
        let cookie = net.pod.cookie();
        gate.hold(A, &[]).unwrap();
        gate.release(A).unwrap();
        assert!(gate.has_tap());
        net.pod.output(command);
        assert!(!gate.has_tap(), "{command}");
        let tap = gate.tap_place().unwrap().make().unwrap();
        drop(gate.set_tap(tap));
        assert!(gate.has_tap());
        gate.hold(A, &[]).unwrap();
        let client = net.udp(false, "0.0.0.0:0");
        client.send_to(b"x", address("10.9.0.1", PORT)).unwrap();
        wait_wanted(&mut gate, A);
        assert_eq!(gate.release(A).unwrap().frames, 1);
        drop(gate);
        assert_clean(&net, cookie);
    }
}

pub fn closing_takes_everything_back() {
    takes_everything_back(None);
    takes_everything_back(Some(Method::Clsact));
}

pub fn a_second_gate_is_refused_and_a_dead_ones_entries_removed() {
    let net = Net::new();
    let mut gate = net.gate();
    let cookie = net.pod.cookie();
    let second = Gate::open(net.pod.fd(), pins(), LIMITS);
    assert!(matches!(second.err(), Some(GateError::InUse)));
    let flow = Flow::new(address("10.9.0.1", PORT), address("10.9.0.2", 40000));
    gate.hold(A, &[flow]).unwrap();
    let entries = maps().ports.keys().unwrap();
    drop(gate);
    // As after a kill: entries, but no links.
    for key in &entries {
        let value = podmotion_bpf::PortValue::new(
            1,
            podmotion_bpf::Mode::Hold,
            podmotion_bpf::PortFlags::NONE,
        );
        maps().ports.insert(key, &value).unwrap();
    }
    maps().netns.insert(&cookie, &Default::default()).unwrap();
    let gate = Gate::open(net.pod.fd(), pins(), LIMITS).unwrap();
    assert!(
        !maps()
            .ports
            .keys()
            .unwrap()
            .iter()
            .any(|k| k.netns() == cookie)
    );
    drop(gate);
    maps().netns.insert(&cookie, &Default::default()).unwrap();
    gate::purge(pins(), cookie).unwrap();
    assert_clean(&net, cookie);
}

pub fn sockets_are_listed_with_what_waits() {
    let net = Net::new();
    let mut gate = net.gate();
    let server = address("10.9.0.1", PORT);
    let list = |gate: &mut Gate| {
        let [all, own] = [Wanted::All, Wanted::Own].map(|wanted| {
            let mut found = gate.sockets(&held(), wanted).unwrap();
            found.flows.sort_unstable();
            found
                .listeners
                .sort_unstable_by_key(|listener| listener.local);
            found
        });
        assert_eq!(all, own);
        all
    };
    assert_eq!(list(&mut gate), sockets::Sockets::default());
    let listener = net.pod.run(|| TcpListener::bind(server).unwrap());
    let listener6 = net
        .pod
        .run(|| TcpListener::bind(address("::", 9090)).unwrap());
    let _udp = net.udp(true, "0.0.0.0:53");
    let found = list(&mut gate);
    assert_eq!(found.ports(), BTreeSet::from([53, PORT, 9090]));
    assert_eq!((found.pending, found.flows.len()), (0, 0));
    // Connected, not accepted.
    let _client = net.connect(false, server);
    let mapped = net.connect(false, address("10.9.0.1", 9090));
    let found = list(&mut gate);
    assert_eq!(found.pending, 2, "{found:?}");
    assert_eq!(found.flows, []);
    let (_accepted, peer) = listener.accept().unwrap();
    let (_accepted6, _) = listener6.accept().unwrap();
    let found = list(&mut gate);
    assert_eq!(found.pending, 0);
    let flows: BTreeSet<_> = found.flows.into_iter().collect();
    let expected = [
        Flow::new(server, peer),
        Flow::new(address("10.9.0.1", 9090), mapped.local_addr().unwrap()),
    ];
    assert_eq!(flows, BTreeSet::from(expected));
    // All questions go through one socket.
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for _ in 0..10 {
        list(&mut gate);
    }
    assert_eq!(descriptors(), before);
    // Somebody else's are not the container's.
    let nobody = sockets::held(&[]).unwrap();
    for wanted in [Wanted::All, Wanted::Own] {
        let found = gate.sockets(&nobody, wanted).unwrap();
        assert_eq!(found, sockets::Sockets::default());
    }
}

/// Connection requests answered while the last step, the client's, is missing.
pub fn a_connection_that_is_being_opened_waits() {
    let net = Net::new();
    let mut gate = net.gate();
    let server = address("10.9.0.1", PORT);
    let _listener = net.pod.run(|| TcpListener::bind(server).unwrap());
    // What the pod answers does not arrive.
    net.pod.lose("10.9.0.2");
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            net.client
                .run(|| TcpStream::connect_timeout(&server, Duration::from_secs(2)))
        });
        let own = held();
        let deadline = std::time::Instant::now() + Duration::from_secs(2);
        let pending = loop {
            let pending = gate.sockets(&own, Wanted::All).unwrap().pending;
            if pending != 0 || std::time::Instant::now() > deadline {
                break pending;
            }
            std::thread::yield_now();
        };
        assert_eq!(pending, 1);
        // It is nobody's yet, so who asks for each socket of a process does not see it. That is also how to tell that the
        // kernel has not gone through all connections for that.
        let own = gate.sockets(&own, Wanted::Own).unwrap();
        assert_eq!((own.pending, own.listeners.len()), (0, 1));
        assert!(client.join().unwrap().is_err());
    });
}

pub fn listeners_with_mptcp_are_told_apart() {
    let net = Net::new();
    let mut gate = net.gate();
    let server = address("10.9.0.1", PORT);
    let Some(_listener) = net.pod.run(|| mptcp_listener(server)) else {
        // Nobody can listen so on this kernel.
        return;
    };
    for wanted in [Wanted::All, Wanted::Own] {
        let found = gate.sockets(&held(), wanted).unwrap();
        assert_eq!(found.mptcp_listeners, [server]);
    }
}

/// They have no other end yet that could be asked for.
pub fn connections_that_the_pod_opens_are_listed_from_the_first_packet_on() {
    let net = Net::new();
    let mut gate = net.gate();
    let far = address("10.9.0.2", PORT);
    net.pod.lose("10.9.0.2");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            net.pod
                .run(|| TcpStream::connect_timeout(&far, Duration::from_secs(2)))
        });
        let deadline = std::time::Instant::now() + Duration::from_secs(2);
        let found = loop {
            let found = gate.sockets(&held(), Wanted::Own).unwrap().flows;
            if !found.is_empty() || std::time::Instant::now() > deadline {
                break found;
            }
            std::thread::yield_now();
        };
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].remote, far);
    });
}

/// A client has gone for good, and the application has not looked yet.
pub fn a_connection_that_was_reset_is_none() {
    let net = Net::new();
    let mut gate = net.gate();
    let server = address("10.9.0.1", PORT);
    let listener = net.pod.run(|| TcpListener::bind(server).unwrap());
    let client = net.connect(false, server);
    let (accepted, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    let mut byte = [0];
    while accepted.peek(&mut byte).is_ok() {}
    for wanted in [Wanted::All, Wanted::Own] {
        let found = gate.sockets(&held(), wanted).unwrap();
        assert_eq!((found.flows.len(), found.queued), (0, 0), "{found:?}");
        assert_eq!(found.tcp_ports(), BTreeSet::from([PORT]));
    }
}

pub fn a_killed_shims_filters_are_taken_off() {
    let net = Net::new();
    let gate = net.gate_with(LIMITS, Some(Method::Clsact));
    // Nothing of it runs any more, and nothing is taken back.
    std::mem::forget(gate);
    let filters = || {
        let filters = net.pod.output("tc filter show dev eth0 ingress");
        let ours = |line: &&str| line.contains("gate_ingress");
        filters.lines().filter(ours).count()
    };
    assert_eq!(filters(), 1);
    let gate = net.gate_with(LIMITS, Some(Method::Clsact));
    assert_eq!(filters(), 1);
    drop(gate);
    assert_eq!(filters(), 0);
}
