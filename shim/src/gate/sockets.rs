//! The sockets of a container, asked of the kernel (`NETLINK_SOCK_DIAG`).

mod diag;
mod own;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use netlink_packet_core::DecodeError;
use netlink_packet_sock_diag::constants::{
    TCP_CLOSE, TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_RECV,
};
use netlink_packet_sock_diag::inet::{InetResponse, InetResponseHeader, nlas::Nla};
use netlink_sys::Socket;
use podmotion_bpf::netns::{self, NetnsError};
use thiserror::Error;

use diag::{connect, dump, requests};

/// The sockets could not be listed.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The network namespace could not be entered.
    #[error("cannot list sockets")]
    Netns(#[from] NetnsError),
    /// The kernel did not answer.
    #[error("cannot ask the kernel for sockets")]
    Netlink(#[source] io::Error),
    /// The kernel refused.
    #[error("the kernel refuses to list sockets")]
    Refused(#[source] io::Error),
    /// The answer makes no sense.
    #[error("cannot read the kernel's list of sockets")]
    Decode(#[source] DecodeError),
}

/// A TCP connection, seen from the pod. An IPv4 address is the same in both of its forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
}

impl Flow {
    /// The connection between the two. Without flow label and scope, which are no part of it.
    #[must_use]
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        let plain = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
        Self {
            local: plain(local),
            remote: plain(remote),
        }
    }
}

/// A listening TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub local: SocketAddr,
    /// Connections that wait to be accepted.
    pub accept_queue: u32,
}

/// The sockets of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sockets {
    /// Listening TCP sockets.
    pub listeners: Vec<Listener>,
    /// Where its MPTCP sockets listen, which CRIU cannot dump. Depending on the kernel they are
    /// among `listeners` too, with the TCP socket beneath.
    pub mptcp_listeners: Vec<SocketAddr>,
    /// Ports of its UDP sockets that have no fixed peer.
    pub udp_ports: BTreeSet<u16>,
    /// Its TCP sockets with a peer, also those that are being opened or closed.
    pub flows: Vec<Flow>,
    /// Connections that have reached a listener but not the application: being opened, or in the
    /// accept queue. While there are some a checkpoint would lose them.
    pub pending: u32,
    /// Bytes that have arrived and were not read yet, or were sent and not acknowledged.
    pub queued: u64,
    /// The connections that others have opened and that a request has arrived on which nothing was sent
    /// for since: how long ago.
    pub unanswered: Vec<(Flow, Duration)>,
}

impl Sockets {
    /// The ports that others reach it on.
    #[must_use]
    pub fn ports(&self) -> BTreeSet<u16> {
        &self.tcp_ports() | &self.udp_ports
    }

    /// Those of them that TCP connections can be opened to.
    #[must_use]
    pub fn tcp_ports(&self) -> BTreeSet<u16> {
        let listeners = self.listeners.iter();
        listeners.map(|listener| listener.local.port()).collect()
    }

    /// What the kernel has for the application, or for its clients, in words; `None` if nothing.
    #[must_use]
    pub fn under_way(&self) -> Option<&'static str> {
        match (self.pending, self.queued) {
            (0, 0) => None,
            (0, _) => Some("a connection has data under way"),
            _ => Some("a connection is waiting to be accepted"),
        }
    }
}

/// Sockets that some processes have open.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// By inode: a process, and its number there.
    places: BTreeMap<u64, (i32, RawFd)>,
}

impl Held {
    fn has(&self, entry: &Entry) -> bool {
        self.places.contains_key(&u64::from(entry.header.inode))
    }
}

/// All sockets that the processes `pids` have open. A process that has ended has none.
pub fn held(pids: &[i32]) -> io::Result<Held> {
    let mut held = Held::default();
    for &pid in pids {
        let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(entries) => entries,
            Err(error) if gone(&error) => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let read = |entry: fs::DirEntry| {
                let inode = fs::read_link(entry.path())?.to_str().and_then(socket_inode);
                Ok((inode, entry.file_name()))
            };
            match entry.and_then(read) {
                Ok((inode, name)) => {
                    let number = name.to_str().and_then(|name| name.parse().ok());
                    let place = inode.zip(number);
                    held.places
                        .extend(place.map(|(inode, number)| (inode, (pid, number))));
                }
                Err(error) if gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(held)
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Everything, also connections that are only being opened, which are no process's yet: the kernel goes through a
    /// table of the whole node's connections for that, which takes milliseconds.
    All,
    /// The same without UDP and MPTCP sockets.
    Tcp,
    /// What the processes have, each asked for by itself; where there is a way to do that, nothing is known of
    /// connections that are only being opened.
    Own,
}

/// Asks the kernel for the sockets of a network namespace.
#[derive(Debug)]
pub struct Inquiry {
    /// Of the network namespace.
    cookie: u64,
    /// One of its own, there is no other way to ask. None before the first question, and after one that failed: what may
    /// still come would be taken for the answer to another.
    socket: Option<Socket>,
}

impl Inquiry {
    /// For the network namespace with this cookie.
    #[must_use]
    pub fn new(cookie: u64) -> Self {
        Self {
            cookie,
            socket: None,
        }
    }

    /// Lists the sockets in the network namespace, which `netns` is, that are among `held`.
    pub fn list(
        &mut self,
        netns: BorrowedFd<'_>,
        held: &Held,
        wanted: Wanted,
    ) -> Result<Sockets, SocketError> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None => netns::enter(netns, connect)??,
        };
        let all = self.ask(&socket, held, wanted)?;
        self.socket = Some(socket);
        Ok(sort(&all, held))
    }

    fn ask(&self, socket: &Socket, held: &Held, wanted: Wanted) -> Result<Answers, SocketError> {
        let kinds: &[Kind] = match wanted {
            Wanted::Own => match own::list(socket, self.cookie, held)? {
                Some(all) => return Ok(all),
                None => &[Kind::Tcp, Kind::Udp, Kind::Mptcp],
            },
            Wanted::All => &[Kind::Tcp, Kind::Udp, Kind::Mptcp],
            Wanted::Tcp => &[Kind::Tcp],
        };
        let mut all = Answers::new();
        for kind in kinds {
            for request in requests(*kind) {
                all.push((*kind, dump(socket, &request, *kind)?));
            }
        }
        Ok(all)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp,
    Udp,
    Mptcp,
}

/// A socket in the kernel's list.
struct Entry {
    header: InetResponseHeader,
    unanswered: Option<Duration>,
}

impl From<InetResponse> for Entry {
    fn from(response: InetResponse) -> Self {
        let unanswered = response.nlas.iter().find_map(|nla| match nla {
            Nla::TcpInfo(info) => unanswered(info),
            _ => None,
        });
        Self {
            unanswered,
            header: response.header,
        }
    }
}

/// How long ago the peer has sent what the socket has sent nothing for since, by the kernel's
/// `struct tcp_info` (`include/uapi/linux/tcp.h`, those fields since Linux 4.6).
///
/// The kernel's times are as coarse as its clock tick: a request in the same tick as the answer to the
/// one before it is taken for answered.
fn unanswered(info: &[u8]) -> Option<Duration> {
    const LAST_DATA_SENT: usize = 44;
    const LAST_DATA_RECV: usize = 52;
    const DATA_SEGS_IN: usize = 152;
    const DATA_SEGS_OUT: usize = 156;
    let field = |at: usize| {
        let bytes = info.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let (sent, received) = (field(LAST_DATA_SENT)?, field(LAST_DATA_RECV)?);
    // Before anything was sent its time is that of the handshake.
    let nothing_sent = field(DATA_SEGS_OUT)? == 0;
    let is_request = field(DATA_SEGS_IN)? > 0 && (nothing_sent || received < sent);
    is_request.then(|| Duration::from_millis(u64::from(received)))
}

/// What the kernel has answered.
type Answers = Vec<(Kind, Vec<Entry>)>;

fn sort(all: &[(Kind, Vec<Entry>)], held: &Held) -> Sockets {
    let mut sockets = Sockets::default();
    let each = || {
        all.iter()
            .flat_map(|(kind, list)| list.iter().map(move |entry| (*kind, entry)))
    };
    for (kind, entry) in each().filter(|(_, entry)| held.has(entry)) {
        let socket = &entry.header;
        let id = &socket.socket_id;
        let local = SocketAddr::new(id.source_address, id.source_port);
        let remote = SocketAddr::new(id.destination_address, id.destination_port);
        match (kind, socket.state) {
            (Kind::Tcp, TCP_LISTEN) => sockets.listeners.push(Listener {
                local,
                accept_queue: socket.recv_queue,
            }),
            (Kind::Mptcp, TCP_LISTEN) => sockets.mptcp_listeners.push(local),
            (Kind::Tcp, state) if state != TCP_CLOSE => {
                sockets.queued += u64::from(socket.recv_queue) + u64::from(socket.send_queue);
                let flow = Flow::new(local, remote);
                sockets.flows.push(flow);
                if matches!(state, TCP_ESTABLISHED | TCP_CLOSE_WAIT) {
                    let waits = entry.unanswered.map(|age| (flow, age));
                    sockets.unanswered.extend(waits);
                }
            }
            (Kind::Udp, TCP_CLOSE) => {
                sockets.udp_ports.insert(local.port());
            }
            _ => {}
        }
    }
    let ports: BTreeSet<u16> = sockets.listeners.iter().map(|l| l.local.port()).collect();
    // On connections that the container has opened the peer's last word is an answer.
    let is_request = |(flow, _): &(Flow, Duration)| ports.contains(&flow.local.port());
    sockets.unanswered.retain(is_request);
    // Not the container's by inode yet: nobody has accepted them.
    let opening = each().filter(|(kind, entry)| {
        *kind == Kind::Tcp
            && entry.header.state == TCP_SYN_RECV
            && ports.contains(&entry.header.socket_id.source_port)
    });
    let accepted_later: u32 = sockets.listeners.iter().map(|l| l.accept_queue).sum();
    sockets.pending = opening.count() as u32 + accepted_later;
    sockets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_inode_of_a_descriptor_link() {
        assert_eq!(socket_inode("socket:[4711]"), Some(4711));
        assert_eq!(socket_inode("/dev/null"), None);
        assert_eq!(socket_inode("pipe:[4711]"), None);
    }

    #[test]
    fn a_request_is_unanswered_until_something_is_sent_after_it() {
        let info = |sent: u32, received: u32, segments_in: u32, segments_out: u32| {
            let mut info = [0; 248];
            for (at, value) in [
                (44, sent),
                (52, received),
                (152, segments_in),
                (156, segments_out),
            ] {
                info[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            }
            unanswered(&info)
        };
        let request = Some(Duration::from_millis(500));
        assert_eq!(info(500, 500, 1, 0), request, "right after the handshake");
        assert_eq!(info(900, 500, 2, 1), request, "after an earlier answer");
        assert_eq!(info(500, 500, 1, 1), None, "answered at once");
        assert_eq!(info(100, 500, 1, 1), None, "answered late");
        assert_eq!(info(900, 900, 0, 0), None, "nothing came yet");
        assert_eq!(unanswered(&[0; 100]), None, "an older kernel");
    }

    #[test]
    fn an_ipv4_address_is_the_same_in_both_forms() {
        let plain = Flow::new("1.2.3.4:5".parse().unwrap(), "6.7.8.9:10".parse().unwrap());
        let mapped = Flow::new(
            "[::ffff:1.2.3.4]:5".parse().unwrap(),
            "[::ffff:6.7.8.9]:10".parse().unwrap(),
        );
        assert_eq!(plain, mapped);
    }
}
