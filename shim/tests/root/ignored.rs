//! Traffic that the configuration says is not use.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use podmotion_bpf::loader::{load_and_pin, unpin};

use crate::gate::{Gate, NodeRules};
use crate::rig::{A, LIMITS, Net, PORT, address, wait_wanted};

/// Programs of the test's own: what is ignored is so for all gates of an installation.
struct Pins(PathBuf);

impl Pins {
    fn new(test: &str) -> Self {
        let pins = Path::new("/sys/fs/bpf").join(test).join("v1");
        load_and_pin(&pins).unwrap();
        Self(pins)
    }

    fn gate(&self, net: &Net) -> Gate {
        let mut gate = Gate::open(net.pod.fd(), &self.0, LIMITS).unwrap();
        gate.set_ports(A, &BTreeSet::from([PORT])).unwrap();
        gate
    }

    fn ignore(&self, networks: &[(&str, u8)], agents: &[&str]) {
        let network = |(address, prefix): &(&str, u8)| (address.parse().unwrap(), *prefix);
        let rules = NodeRules {
            kubelets: Vec::new(),
            ignored_networks: networks.iter().map(network).collect(),
            ignored_agents: agents.iter().map(|agent| (*agent).into()).collect(),
        };
        rules.tell(&self.0).unwrap();
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = unpin(&self.0);
    }
}

/// A connection with a request and its answer, over in both directions.
fn request(net: &Net, listener: &TcpListener, request: &[u8]) {
    let server = listener.local_addr().unwrap();
    let mut client = net.connect(false, server);
    let (mut accepted, _) = listener.accept().unwrap();
    client.write_all(request).unwrap();
    accepted.read_exact(&mut vec![0; request.len()]).unwrap();
    accepted.write_all(b"yes").unwrap();
    client.read_exact(&mut [0; 3]).unwrap();
    drop(client);
    assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
}

fn listen(net: &Net, server: SocketAddr) -> TcpListener {
    net.pod.run(|| TcpListener::bind(server).unwrap())
}

/// Whether such a request is use. A gate of its own has nothing noted yet.
fn is_use(pins: &Pins, net: &Net, ip: &str, text: &[u8]) -> bool {
    let gate = pins.gate(net);
    request(net, &listen(net, address(ip, PORT)), text);
    gate.last_activity(A).unwrap().is_some()
}

pub fn networks_that_are_ignored_are_not_use() {
    let (pins, net) = (Pins::new("networks"), Net::new());
    for (networks, v4, v6) in [
        (&[][..], true, true),
        (&[("10.9.0.2", 32)], false, true),
        (&[("10.8.0.0", 15), ("fd09::", 16)], false, false),
        (&[("10.9.0.3", 32), ("fd0a::", 16)], true, true),
        (&[("0.0.0.0", 0)], false, true),
        (&[("::", 0)], false, false),
        (&[], true, true),
    ] {
        pins.ignore(networks, &[]);
        assert_eq!(is_use(&pins, &net, "10.9.0.1", b"x"), v4, "{networks:?}");
        assert_eq!(is_use(&pins, &net, "fd09::1", b"x"), v6, "{networks:?}");
    }
    pins.ignore(&[("10.9.0.2", 32)], &[]);
    let gate = pins.gate(&net);
    let server = address("10.9.0.1", PORT);
    let receiver = net.udp(true, &server.to_string());
    net.udp(false, "0.0.0.0:0").send_to(b"x", server).unwrap();
    receiver.recv(&mut [0]).unwrap();
    assert_eq!(gate.last_activity(A).unwrap(), None);
}

pub fn user_agents_that_are_ignored_are_not_use() {
    let (pins, net) = (Pins::new("agents"), Net::new());
    pins.ignore(&[], &["Prometheus/", "a-name-with-thirty-two-character"]);
    let with = |name: &str, agent: &str, before: usize| {
        let filling = "x".repeat(before);
        format!(
            "GET /metrics?{filling} HTTP/1.1\r\nHost: pod\r\n{name}: {agent}\r\nAccept: */*\r\n\r\n"
        )
    };
    for (text, expected) in [
        (with("User-Agent", "Prometheus/3.5.0", 0), false),
        (with("user-agent", "Prometheus/", 0), false),
        (with("User-Agent", "Prometheus/3.5.0", 430), false),
        (
            with("User-Agent", "a-name-with-thirty-two-character/1", 0),
            false,
        ),
        (
            with("User-Agent", "a-name-with-thirty-two-charactes", 0),
            true,
        ),
        (with("User-Agent", "Prometheus/3.5.0", 500), true),
        (with("User-Agent", "Prometheus", 0), true),
        (with("User-Agent", "curl/8.0 Prometheus/", 0), true),
        (with("X-User-Agent", "Prometheus/", 0), true),
        (with("Referer", "Prometheus/", 0), true),
        ("x".into(), true),
        ("\nUser-Agent:".into(), true),
        ("\nUser-Agent: Prometheus".into(), true),
    ] {
        let found = is_use(&pins, &net, "10.9.0.1", text.as_bytes());
        assert_eq!(found, expected, "{text}");
    }
    let request = with("User-Agent", "Prometheus/3.5.0", 0);
    assert!(!is_use(&pins, &net, "fd09::1", request.as_bytes()));
    // Nobody has asked for anything yet.
    let gate = pins.gate(&net);
    let listener = listen(&net, address("10.9.0.1", PORT));
    drop(net.connect(false, listener.local_addr().unwrap()));
    let (mut accepted, _) = listener.accept().unwrap();
    assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
    assert_eq!(gate.last_activity(A).unwrap(), None);
    drop((gate, listener));
    pins.ignore(&[], &[]);
    assert!(is_use(&pins, &net, "10.9.0.1", request.as_bytes()));
}

pub fn what_is_ignored_wakes() {
    let (pins, net) = (Pins::new("wakes"), Net::new());
    pins.ignore(&[("10.9.0.0", 24)], &["Prometheus/"]);
    let mut gate = pins.gate(&net);
    let server = address("10.9.0.1", PORT);
    gate.hold(A, &[]).unwrap();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| net.connect(false, server));
        wait_wanted(&mut gate, A);
        let listener = listen(&net, server);
        assert_eq!(gate.release(A).unwrap().frames, 1);
        listener.accept().unwrap();
        client.join().unwrap();
    });
    assert_eq!(gate.last_activity(A).unwrap(), None);
}
