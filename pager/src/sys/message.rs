//! Reading a userfaultfd's messages so that none is lost with the reader.

use std::io;
use std::os::fd::AsRawFd;

use super::shared::SharedFile;
use super::uffd::{MESSAGE_LEN, Uffd};

/// Reads one message into a shared file at offset `at`; false when there is none. The kernel puts
/// the message there before a reader that was killed in the call ends.
pub(crate) fn read(uffd: &Uffd, into: &SharedFile, at: usize) -> io::Result<bool> {
    let fd = std::os::fd::AsFd::as_fd(uffd).as_raw_fd();
    // SAFETY: `target` checks that the mapping has the bytes; it is accessed by atomics elsewhere
    // and not while this thread is in the call.
    let read = unsafe { libc::read(fd, into.target(at, MESSAGE_LEN), MESSAGE_LEN) };
    if usize::try_from(read) == Ok(MESSAGE_LEN) {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if read >= 0 => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(libc::EAGAIN | libc::EINTR) => Ok(false),
        _ => Err(error),
    }
}
