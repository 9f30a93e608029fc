//! Requests for lists of sockets, and their answers (`linux/sock_diag.h`, `linux/inet_diag.h`).

use std::io;

use std::net::SocketAddr;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SOCK_DIAG_BY_FAMILY,
};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

use super::{Entry, Kind, SocketError};

/// `INET_DIAG_REQ_PROTOCOL`: a protocol whose number does not fit into the request's own field.
const REQUEST_PROTOCOL: u16 = 3;

/// `TCPDIAG_GETSOCK`: asks for TCP sockets of both families, in the form of before requests named one
/// (`struct inet_diag_req`).
const TCP_OF_BOTH: u16 = 18;

/// What is asked for all sockets of a kind. For TCP the kernel goes through its table of the whole node's connections
/// with each request, and that has hundreds of thousands of places: both families at once take half the time.
pub(super) fn requests(kind: Kind) -> Vec<Vec<u8>> {
    match kind {
        Kind::Tcp => vec![of_both(&request(AF_INET, kind, StateFlags::all()))],
        Kind::Udp | Kind::Mptcp => [AF_INET, AF_INET6]
            .map(|family| request(family, kind, StateFlags::all()))
            .to_vec(),
    }
}

/// What is asked for TCP sockets that listen. The kernel has a table of its own for them.
pub(super) fn listening() -> Vec<u8> {
    of_both(&request(AF_INET, Kind::Tcp, StateFlags::LISTEN))
}

/// The TCP socket with these ends, in the network namespace of `socket`. None where the kernel finds none, or one
/// that only listens there.
pub(super) fn one(
    socket: &Socket,
    local: SocketAddr,
    remote: SocketAddr,
) -> Result<Option<Entry>, SocketError> {
    let family = match local {
        SocketAddr::V4(_) => AF_INET,
        SocketAddr::V6(_) => AF_INET6,
    };
    let id = SocketId {
        source_port: local.port(),
        destination_port: remote.port(),
        source_address: local.ip(),
        destination_address: remote.ip(),
        interface_id: 0,
        // `INET_DIAG_NOCOOKIE`.
        cookie: [0xff; 8],
    };
    let request = message(NLM_F_REQUEST, family, Kind::Tcp, StateFlags::all(), id);
    socket.send(&request, 0).map_err(SocketError::Netlink)?;
    let (mut answer, _) = socket.recv_from_full().map_err(SocketError::Netlink)?;
    let mut found = Vec::new();
    match read_answer(&mut answer, &mut found)? {
        Answer::Refused(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Answer::Refused(error) => Err(SocketError::Refused(error)),
        Answer::More | Answer::Done => Ok(found.pop()),
    }
}

/// A socket to ask through, in the calling thread's network namespace.
pub(super) fn connect() -> Result<Socket, SocketError> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(SocketError::Netlink)?;
    socket.bind_auto().map_err(SocketError::Netlink)?;
    Ok(socket)
}

/// The sockets that are asked for, in the network namespace of `socket`. When it fails there can be more to read.
pub(super) fn dump(socket: &Socket, request: &[u8], kind: Kind) -> Result<Vec<Entry>, SocketError> {
    socket.send(request, 0).map_err(SocketError::Netlink)?;
    let mut found = Vec::new();
    loop {
        let (mut answer, _) = socket.recv_from_full().map_err(SocketError::Netlink)?;
        match read_answer(&mut answer, &mut found)? {
            Answer::More => {}
            Answer::Done => return Ok(found),
            // No such protocol here: no socket of it either.
            Answer::Refused(error) if kind == Kind::Mptcp && unknown_protocol(&error) => {
                return Ok(Vec::new());
            }
            Answer::Refused(error) => return Err(SocketError::Refused(error)),
        }
    }
}

fn unknown_protocol(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::EINVAL | libc::EPROTONOSUPPORT | libc::EOPNOTSUPP)
    )
}

/// For all sockets of a kind and family that are in one of `states`.
fn request(family: u8, kind: Kind, states: StateFlags) -> Vec<u8> {
    let any = match family {
        AF_INET => SocketId::new_v4(),
        _ => SocketId::new_v6(),
    };
    message(NLM_F_REQUEST | NLM_F_DUMP, family, kind, states, any)
}

fn message(flags: u16, family: u8, kind: Kind, states: StateFlags, socket_id: SocketId) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(
        header,
        SockDiagMessage::InetRequest(InetRequest {
            family,
            protocol: if kind == Kind::Udp {
                IPPROTO_UDP
            } else {
                IPPROTO_TCP
            },
            extensions: match kind {
                Kind::Tcp => ExtensionFlags::INFO,
                Kind::Udp | Kind::Mptcp => ExtensionFlags::empty(),
            },
            states,
            socket_id,
        })
        .into(),
    );
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    if kind == Kind::Mptcp {
        bytes.extend_from_slice(&8_u16.to_ne_bytes());
        bytes.extend_from_slice(&REQUEST_PROTOCOL.to_ne_bytes());
        bytes.extend_from_slice(&libc::IPPROTO_MPTCP.to_ne_bytes());
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
    }
    bytes
}

/// The same request for one family and for both:
///
/// ```text
///   header(16)  family protocol extensions 0  states(4)  socket(48)
///   header(16)  family 0 0 extensions         socket(48) states(4)  0(4)
/// ```
fn of_both(request: &[u8]) -> Vec<u8> {
    let (header, rest) = request.split_at(16);
    let (head, rest) = rest.split_at(4);
    let (states, socket) = rest.split_at(4);
    let mut bytes = [header, &[head[0], 0, 0, head[2]], socket, states, &[0; 4]].concat();
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    set_kind(&mut bytes, TCP_OF_BOTH);
    bytes
}

/// Says of what kind a message is.
fn set_kind(message: &mut [u8], kind: u16) {
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
}

enum Answer {
    More,
    Done,
    Refused(io::Error),
}

/// Reads the messages of one datagram.
fn read_answer(mut bytes: &mut [u8], found: &mut Vec<Entry>) -> Result<Answer, SocketError> {
    while !bytes.is_empty() {
        if bytes.get(4..6) == Some(&TCP_OF_BOTH.to_ne_bytes()) {
            // The library reads the same message under this number.
            set_kind(bytes, SOCK_DIAG_BY_FAMILY);
        }
        let message =
            NetlinkMessage::<SockDiagMessage>::deserialize(bytes).map_err(SocketError::Decode)?;
        let length = (message.header.length as usize).next_multiple_of(4);
        bytes = bytes.get_mut(length..).unwrap_or_default();
        match message.payload {
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                found.push(Entry::from(*response));
            }
            NetlinkPayload::Done(_) => return Ok(Answer::Done),
            NetlinkPayload::Error(error) => return Ok(Answer::Refused(error.to_io())),
            _ => {}
        }
    }
    Ok(Answer::More)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_are_asked_for_as_the_kernel_once_wanted_it() {
        let one = request(AF_INET, Kind::Tcp, StateFlags::all());
        let both = of_both(&one);
        assert_eq!(both.len(), 16 + size_of::<[u32; 15]>());
        assert_eq!(both[..4], 76_u32.to_ne_bytes());
        assert_eq!(both[4..6], TCP_OF_BOTH.to_ne_bytes());
        // Extensions, the socket, states.
        assert_eq!(both[19], one[18]);
        assert_eq!(both[20..68], one[24..72]);
        assert_eq!(both[68..72], one[20..24]);
    }
}
