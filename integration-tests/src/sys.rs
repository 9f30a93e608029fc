//! The one system interface that no safe crate wraps.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// Segments sent again on this connection so far, the SYN included (`tcpi_total_retrans`).
pub(crate) fn retransmits(stream: &TcpStream) -> io::Result<u32> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: `info` is writable for `length` bytes, and both outlive the call; the kernel writes at most
    // `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the structure is made of integers, for which the zeroes it started from are valid.
    Ok(unsafe { info.assume_init() }.tcpi_total_retrans)
}
