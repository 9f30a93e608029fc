//! The sockets of some processes, each asked for by itself.
//!
//! A list of TCP connections is a walk of the kernel through a table of the whole node, whose size goes with the node's
//! memory: 262,144 places with 24 GiB, three milliseconds. A container has few connections as a rule, and the kernel finds
//! one whose ends are known at once. The ends are asked of the socket itself, through a copy of the process's descriptor.
//!
//! Whatever is not found as expected (a socket that is bound to an interface, one that is only connecting, one that has gone
//! meanwhile) is left to the walk.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use podmotion_bpf::netns;
use rustix::net::{ipproto, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::diag::{connect, dump, listening, one, requests};
use super::{Answers, Held, Kind, SocketError};

/// From so many sockets on a walk is faster.
const MOST: usize = 256;

/// What [`sort`](super::sort) sorts, of the network namespace with this cookie, which the calling thread is in; none where
/// it takes a walk.
pub(super) fn list(cookie: u64, held: &Held) -> Result<Option<Answers>, SocketError> {
    if held.places.len() > MOST {
        return Ok(None);
    }
    let kernel = connect()?;
    let mut processes = HashMap::new();
    let (mut tcp, mut udp) = (Vec::new(), false);
    for (&inode, &(pid, number)) in &held.places {
        let failed = |source| SocketError::Process { pid, source };
        let Some(socket) = copy(&mut processes, pid, number).map_err(failed)? else {
            return Ok(None);
        };
        if netns::cookie_of(socket.as_fd()).map_err(failed)? != cookie {
            continue;
        }
        match sockopt::socket_protocol(&socket).map_err(|e| failed(e.into()))? {
            Some(ipproto::UDP) => udp = true,
            // Its connections are more than one socket each.
            Some(ipproto::MPTCP) => return Ok(None),
            Some(ipproto::TCP) if !sockopt::socket_acceptconn(&socket).unwrap_or(false) => {
                let Some((local, remote)) = ends(&socket) else {
                    return Ok(None);
                };
                match one(&kernel, local, remote)? {
                    Some(entry) if u64::from(entry.header.inode) == inode => tcp.push(entry),
                    _ => return Ok(None),
                }
            }
            _ => {}
        }
    }
    let mut all = vec![
        (Kind::Tcp, tcp),
        (Kind::Tcp, dump(&listening(), Kind::Tcp)?),
    ];
    if udp {
        for request in requests(Kind::Udp) {
            all.push((Kind::Udp, dump(&request, Kind::Udp)?));
        }
    }
    Ok(Some(all))
}

/// A copy of a process's descriptor; none where there is no such descriptor any more.
fn copy(
    processes: &mut HashMap<i32, OwnedFd>,
    pid: i32,
    number: RawFd,
) -> io::Result<Option<OwnedFd>> {
    let gone = |error: &rustix::io::Errno| {
        matches!(*error, rustix::io::Errno::SRCH | rustix::io::Errno::BADF)
    };
    let process = match processes.entry(pid) {
        Place::Occupied(known) => known.into_mut(),
        Place::Vacant(place) => {
            let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
            match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(process) => place.insert(process),
                Err(error) if gone(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    };
    match pidfd_getfd(process.as_fd(), number, PidfdGetfdFlags::empty()) {
        Ok(copy) => Ok(Some(copy)),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Both ends of a connection; none of a socket that has none.
fn ends(socket: &OwnedFd) -> Option<(SocketAddr, SocketAddr)> {
    let local = rustix::net::getsockname(socket).ok()?;
    let remote = rustix::net::getpeername(socket).ok()??;
    Some((local.try_into().ok()?, remote.try_into().ok()?))
}
