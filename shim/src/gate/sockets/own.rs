//! The sockets of some processes, each asked for by itself.
//!
//! A list of TCP connections is a walk of the kernel through a table of the whole node, whose size goes with the node's
//! memory: 262,144 places with 24 GiB, three milliseconds. A container has few connections as a rule, and the kernel finds
//! one whose ends are known at once. The ends are asked of the socket itself, through a copy of the process's descriptor.
//!
//! Whatever is not found as expected (a socket that is bound to an interface, one that is only connecting, one that has gone
//! meanwhile or cannot be had) is left to the walk.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use netlink_sys::Socket;
use podmotion_bpf::netns;
use rustix::net::{ipproto, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::diag::{dump, listening, one, requests};
use super::{Answers, Held, Kind, SocketError};

/// From so many sockets on a walk is faster.
const MOST: usize = 256;

/// What [`sort`](super::sort) sorts, of the network namespace with this cookie, which `kernel` is in; none where it takes a
/// walk.
pub(super) fn list(
    kernel: &Socket,
    cookie: u64,
    held: &Held,
) -> Result<Option<Answers>, SocketError> {
    if held.places.len() > MOST {
        return Ok(None);
    }
    let mut processes = HashMap::new();
    let (mut tcp, mut udp) = (Vec::new(), false);
    for (&inode, &(pid, number)) in &held.places {
        let Ok(socket) = copy(&mut processes, pid, number) else {
            return Ok(None);
        };
        match netns::cookie_of(socket.as_fd()) {
            Ok(its) if its == cookie => {}
            Ok(_) => continue,
            Err(_) => return Ok(None),
        }
        match sockopt::socket_protocol(&socket) {
            Ok(Some(ipproto::UDP)) => udp = true,
            // An MPTCP connection is more than one socket.
            Ok(Some(ipproto::MPTCP)) | Err(_) => return Ok(None),
            Ok(Some(ipproto::TCP)) if !sockopt::socket_acceptconn(&socket).unwrap_or(false) => {
                let Some((local, remote)) = ends(&socket) else {
                    return Ok(None);
                };
                match one(kernel, local, remote)? {
                    Some(entry) if u64::from(entry.header.inode) == inode => tcp.push(entry),
                    _ => return Ok(None),
                }
            }
            _ => {}
        }
    }
    let mut all = vec![
        (Kind::Tcp, tcp),
        (Kind::Tcp, dump(kernel, &listening(), Kind::Tcp)?),
    ];
    if udp {
        for request in requests(Kind::Udp) {
            all.push((Kind::Udp, dump(kernel, &request, Kind::Udp)?));
        }
    }
    Ok(Some(all))
}

/// A copy of a process's descriptor. It may be closed by now, or a security module may keep others away from it.
fn copy(
    processes: &mut HashMap<i32, OwnedFd>,
    pid: i32,
    number: RawFd,
) -> rustix::io::Result<OwnedFd> {
    let process = match processes.entry(pid) {
        Place::Occupied(known) => known.into_mut(),
        Place::Vacant(place) => {
            let pid = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH)?;
            place.insert(pidfd_open(pid, PidfdFlags::empty())?)
        }
    };
    pidfd_getfd(process.as_fd(), number, PidfdGetfdFlags::empty())
}

/// Both ends of a connection; none of a socket that has none.
fn ends(socket: &OwnedFd) -> Option<(SocketAddr, SocketAddr)> {
    let local = rustix::net::getsockname(socket).ok()?;
    let remote = rustix::net::getpeername(socket).ok()??;
    Some((local.try_into().ok()?, remote.try_into().ok()?))
}
