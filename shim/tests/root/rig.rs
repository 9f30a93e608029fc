//! Two network namespaces with a veth pair between them: a pod's and its client's.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use podmotion_bpf::loader::load_and_pin;
use podmotion_bpf::{DEFAULT_PIN_DIR, Maps, Method, netns};

use crate::gate::{
    ContainerKey, Gate, Limits,
    sockets::{self, Held},
};

pub const PORT: u16 = 8080;
pub const A: ContainerKey = ContainerKey(1);
pub const B: ContainerKey = ContainerKey(2);
pub const LIMITS: Limits = Limits {
    packets: 4096,
    bytes: 16 << 20,
};
/// For whatever must happen; reached only by a failing test.
pub const LONG: Duration = Duration::from_secs(5);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A mount namespace for this process with its own `/run` (named network namespaces) and BPF file
/// system, and the programs in it. Before any thread is started.
pub fn prepare() {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    mount(
        Some("bpf"),
        "/sys/fs/bpf",
        Some("bpf"),
        MsFlags::empty(),
        none,
    )
    .unwrap();
    load_and_pin(pins()).unwrap();
}

pub fn pins() -> &'static Path {
    Path::new(DEFAULT_PIN_DIR)
}

pub fn maps() -> Maps {
    Maps::open(pins()).unwrap()
}

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap();
    assert!(output.status.success(), "ip {arguments}: {output:?}");
}

/// A named network namespace, removed when dropped.
pub struct Netns {
    name: String,
    fd: OwnedFd,
}

impl Netns {
    fn new(name: String) -> Self {
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        let fd = fs::File::open(format!("/run/netns/{name}")).unwrap().into();
        Self { name, fd }
    }

    pub fn fd(&self) -> OwnedFd {
        self.fd.try_clone().unwrap()
    }

    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    pub fn cookie(&self) -> u64 {
        netns::cookie(self.fd.as_fd()).unwrap()
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::enter(self.fd.as_fd(), work).unwrap()
    }

    /// What `command` says of this namespace.
    pub fn output(&self, command: &str) -> String {
        let mut words = command.split(' ');
        let program = words.next().unwrap();
        let output = Command::new(program)
            .args(["-n", &self.name])
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Sends what goes to `address` where nobody takes it.
    pub fn lose(&self, address: &str) {
        self.output(&format!(
            "ip neigh replace {address} lladdr 02:00:00:00:00:99 dev eth0 nud permanent"
        ));
    }

    /// TCP segments sent again by anyone in this namespace.
    pub fn retransmissions(&self) -> u64 {
        let snmp = self.run(|| fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
        let mut tcp = snmp.lines().filter(|line| line.starts_with("Tcp:"));
        let names = tcp.next().unwrap().split(' ');
        let values = tcp.next().unwrap().split(' ');
        let (_, value) = names
            .zip(values)
            .find(|(name, _)| *name == "RetransSegs")
            .unwrap();
        value.parse().unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// A pod and a client beside it.
pub struct Net {
    pub pod: Netns,
    pub client: Netns,
}

impl Net {
    pub fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pod = Netns::new(format!("pod{number}"));
        let client = Netns::new(format!("client{number}"));
        let (p, c) = (&pod.name, &client.name);
        ip(&format!(
            "link add eth0 netns {p} type veth peer name eth0 netns {c}"
        ));
        for (ns, host) in [(p, 1), (c, 2)] {
            ip(&format!("-n {ns} addr add 10.9.0.{host}/24 dev eth0"));
            ip(&format!("-n {ns} addr add fd09::{host}/64 dev eth0 nodad"));
            ip(&format!("-n {ns} link set eth0 up"));
        }
        let net = Self { pod, client };
        // The kernel gets to the one that came up first later, and until then drops what it sends.
        for side in [&net.pod, &net.client] {
            let deadline = std::time::Instant::now() + LONG;
            while !side.output("ip -o link show eth0").contains("state UP") {
                assert!(std::time::Instant::now() < deadline, "eth0 stays down");
                std::thread::yield_now();
            }
        }
        net
    }

    /// A gate of the pod with `PORT` managed for container A.
    pub fn gate(&self) -> Gate {
        self.gate_with(LIMITS, None)
    }

    pub fn gate_with(&self, limits: Limits, method: Option<Method>) -> Gate {
        let mut gate = Gate::open_with(self.pod.fd(), pins(), limits, method).unwrap();
        gate.set_ports(A, &BTreeSet::from([PORT])).unwrap();
        gate
    }

    /// Whether the pod has a tap that is up.
    pub fn tap_is_up(&self) -> bool {
        self.pod.output("ip -o link show up").contains("podmotion")
    }

    /// From where a client reaches `server`: within the pod if that is one of its own addresses
    /// and `local` is set.
    pub fn side(&self, local: bool) -> &Netns {
        if local { &self.pod } else { &self.client }
    }

    pub fn connect(&self, local: bool, to: SocketAddr) -> TcpStream {
        let stream = self
            .side(local)
            .run(|| TcpStream::connect_timeout(&to, LONG).unwrap());
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
    }

    pub fn udp(&self, local: bool, bind: &str) -> UdpSocket {
        let socket = self.side(local).run(|| UdpSocket::bind(bind).unwrap());
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket
    }
}

/// Reads what is held until `container` is wanted.
pub fn wait_wanted(gate: &mut Gate, container: ContainerKey) {
    let deadline = std::time::Instant::now() + LONG;
    loop {
        if gate.read_held().unwrap().contains(&container) {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "nothing held for {container:?}"
        );
        wait_readable(gate, LONG);
    }
}

/// Waits for frames in the tap, at most `time`.
pub fn wait_readable(gate: &Gate, time: Duration) {
    let tap = gate.tap_fd().unwrap();
    let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(time).unwrap()).unwrap();
}

/// Collects what is held during `time`.
pub fn hold_for(gate: &mut Gate, time: Duration) {
    let end = std::time::Instant::now() + time;
    while let Some(left) = end.checked_duration_since(std::time::Instant::now()) {
        wait_readable(gate, left);
        gate.read_held().unwrap();
    }
}

/// What is left of a gate of `net` is nothing.
pub fn assert_clean(net: &Net, cookie: u64) {
    let links = net.pod.output("ip -o link");
    assert!(!links.contains("podmotion"), "{links}");
    assert_eq!(links.lines().count(), 2, "{links}");
    let qdiscs = net.pod.output("tc qdisc show");
    assert!(!qdiscs.contains("clsact"), "{qdiscs}");
    for interface in ["lo", "eth0"] {
        let filters = net
            .pod
            .output(&format!("tc filter show dev {interface} ingress"));
        assert_eq!(filters.trim(), "");
        let fd = net.pod.fd();
        assert!(
            !podmotion_bpf::is_attached(fd.as_fd(), interface, podmotion_bpf::GATE_PROGRAM)
                .unwrap()
        );
    }
    let maps = maps();
    let of_cookie = |netns: u64| netns == cookie;
    assert!(!maps.netns.keys().unwrap().into_iter().any(of_cookie));
    assert!(!maps.counters.keys().unwrap().into_iter().any(of_cookie));
    assert!(
        !maps
            .ports
            .keys()
            .unwrap()
            .iter()
            .any(|k| k.netns() == cookie)
    );
    assert!(
        !maps
            .flows
            .keys()
            .unwrap()
            .iter()
            .any(|k| k.netns() == cookie)
    );
}

pub fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port)
}

/// The sockets of this process.
pub fn held() -> Held {
    sockets::held(&[std::process::id().cast_signed()]).unwrap()
}
