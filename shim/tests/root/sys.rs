//! Socket options that nix has no name for, as CRIU uses them.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const RECEIVE: i32 = 1;
const SEND: i32 = 2;
/// Leaves repair mode without a word to the peer.
const REPAIR_OFF: i32 = -1;

fn option(stream: &TcpStream, name: i32, value: i32) {
    // SAFETY: the descriptor is open, and `value` is as long as is said.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn sequence(stream: &TcpStream, queue: i32) -> u32 {
    option(stream, TCP_REPAIR_QUEUE, queue);
    let mut value = 0_u32;
    let mut length = size_of::<u32>() as u32;
    // SAFETY: the descriptor is open, `value` is as long as `length` says and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_QUEUE_SEQ,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    value
}

/// The next sequence numbers of an idle connection: received and sent.
pub fn sequences(stream: &TcpStream) -> (u32, u32) {
    option(stream, TCP_REPAIR, 1);
    let sequences = (sequence(stream, RECEIVE), sequence(stream, SEND));
    option(stream, TCP_REPAIR, REPAIR_OFF);
    sequences
}

/// A listening MPTCP socket on an IPv4 port of the calling thread's network namespace; `None` where
/// the kernel has no MPTCP.
pub fn mptcp_listener(address: SocketAddr) -> Option<TcpListener> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP) };
    if fd < 0 {
        return None;
    }
    // SAFETY: new, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let SocketAddr::V4(address) = address else {
        return None;
    };
    let address = nix::sys::socket::SockaddrIn::from(address);
    nix::sys::socket::bind(socket.as_raw_fd(), &address).unwrap();
    nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    Some(socket.into())
}
