//! What the program is started with, and what it receives.

use std::io;
use std::io::IoSliceMut;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

const CLIENT: RawFd = 3;
const SHIM: RawFd = 4;

/// The client's connection and the way to the shim.
///
/// # Errors
/// When one of them is not open. To be called once, before anything else opens files.
pub fn adopt() -> io::Result<(TcpStream, OwnedFd)> {
    let adopt = |raw| -> io::Result<OwnedFd> {
        // SAFETY: only borrowed for the check whether it is open.
        let fd = unsafe { BorrowedFd::borrow_raw(raw) };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        // SAFETY: the descriptor is open and, by this function's contract, nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(raw) })
    };
    Ok((adopt(CLIENT)?.into(), adopt(SHIM)?))
}

/// One packet of at most a byte, and the descriptor that comes with it; no byte at the end.
///
/// # Errors
/// The system call's.
pub fn receive(socket: &OwnedFd) -> io::Result<(Option<u8>, Option<OwnedFd>)> {
    let mut byte = [0_u8];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let length = message.bytes;
    let mut received = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel installed this descriptor for this message only.
                received = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok(((length > 0).then_some(byte[0]), received))
}
