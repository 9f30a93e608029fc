//! The few rtnetlink requests that attaching and taking back need. They act on the network
//! namespace of the calling thread.

use std::fs::File;
use std::io::{self, Read, Write};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

const NLMSG_ERROR: u16 = 2;
const RTM_DELLINK: u16 = 17;
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const HEADER: usize = 16;
const TCA_KIND: u16 = 1;
/// `TC_H_CLSACT`, the parent under which the qdisc hangs.
const CLSACT_PARENT: u32 = 0xffff_fff1;
/// Its handle, always `ffff:`.
const CLSACT_HANDLE: u32 = 0xffff_0000;

/// Adds the `clsact` qdisc to an interface. `false`: it has it already.
pub fn add_clsact(ifindex: u32) -> io::Result<bool> {
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    match request(RTM_NEWQDISC, flags, &clsact(ifindex)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the `clsact` qdisc and every filter on it.
pub fn delete_clsact(ifindex: u32) -> io::Result<()> {
    request(RTM_DELQDISC, 0, &clsact(ifindex))
}

/// Removes an interface.
pub fn delete_link(ifindex: u32) -> io::Result<()> {
    // struct ifinfomsg: family and type, index, flags, change mask.
    let mut body = [0; 16];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    request(RTM_DELLINK, 0, &body)
}

/// `struct tcmsg` and its attribute `TCA_KIND`.
fn clsact(ifindex: u32) -> [u8; 32] {
    let mut body = [0; 32];
    body[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    body[8..12].copy_from_slice(&CLSACT_HANDLE.to_ne_bytes());
    body[12..16].copy_from_slice(&CLSACT_PARENT.to_ne_bytes());
    body[20..22].copy_from_slice(&11_u16.to_ne_bytes());
    body[22..24].copy_from_slice(&TCA_KIND.to_ne_bytes());
    body[24..31].copy_from_slice(b"clsact\0");
    body
}

fn request(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let mut socket = File::from(socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?);
    let length = (HEADER + body.len()) as u32;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    // One write is one message; the kernel has handled it when the call returns.
    socket.write_all(&message)?;
    let mut answer = [0; 4096];
    let length = socket.read(&mut answer)?;
    acknowledgement(&answer[..length])
}

/// The error number in a `NLMSG_ERROR` message, 0 of which is an acknowledgement.
fn acknowledgement(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).map(|kind| kind.try_into());
    let code = answer.get(HEADER..HEADER + 4).map(|code| code.try_into());
    match (kind, code) {
        (Some(Ok(kind)), Some(Ok(code))) if u16::from_ne_bytes(kind) == NLMSG_ERROR => {
            match i32::from_ne_bytes(code) {
                0 => Ok(()),
                code => Err(io::Error::from_raw_os_error(-code)),
            }
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_acknowledgements_and_errors() {
        let answer = |kind: u16, code: i32| {
            let mut answer = vec![0; 36];
            answer[4..6].copy_from_slice(&kind.to_ne_bytes());
            answer[16..20].copy_from_slice(&code.to_ne_bytes());
            answer
        };
        assert!(acknowledgement(&answer(NLMSG_ERROR, 0)).is_ok());
        let error = acknowledgement(&answer(NLMSG_ERROR, -libc::EEXIST)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
        assert!(acknowledgement(&answer(3, 0)).is_err());
        assert!(acknowledgement(&[]).is_err());
    }
}
