//! The crate's unsafe code: what aya may copy to and from the kernel, and one socket option.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::Pod;

use crate::layout::{
    Counters, FlowKey, FlowValue, Ignored, KubeletKey, NetnsValue, PortKey, PortValue, ProbeKey,
    ProbeValue,
};

// SAFETY: `repr(C)`, integers only, no padding (sizes are tested), every bit pattern valid.
unsafe impl Pod for NetnsValue {}
// SAFETY: as above; the tail is the explicit field `pad`.
unsafe impl Pod for PortKey {}
// SAFETY: as above.
unsafe impl Pod for PortValue {}
// SAFETY: as above; the tail is the explicit field `pad`.
unsafe impl Pod for FlowKey {}
// SAFETY: as above; the tail is the explicit field `pad`.
unsafe impl Pod for FlowValue {}
// SAFETY: as above.
unsafe impl Pod for Counters {}
// SAFETY: as above.
unsafe impl Pod for KubeletKey {}
// SAFETY: as above; the tail is the explicit field `pad`.
unsafe impl Pod for ProbeKey {}
// SAFETY: as above.
unsafe impl Pod for ProbeValue {}
// SAFETY: as above.
unsafe impl Pod for Ignored {}

/// The cookie of the network namespace that `socket` was made in.
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the call's time, `cookie` and `length` outlive the call and
    // `length` says how much may be written to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
