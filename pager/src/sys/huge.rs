//! Huge pages in the memory of another process.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

/// `MADV_COLLAPSE`, Linux 6.1.
const MADV_COLLAPSE: libc::c_int = 25;

/// Moves the content of `range`, which begins and ends between huge pages, to huge pages. Returns the
/// bytes that are in such now. Takes the right to trace the process and `CAP_SYS_NICE`.
pub(crate) fn collapse(process: &OwnedFd, range: &Range<u64>) -> io::Result<u64> {
    let vector = libc::iovec {
        iov_base: range.start as *mut libc::c_void,
        iov_len: (range.end - range.start) as usize,
    };
    // SAFETY: the vector has one entry and outlives the call; the addresses in it are the other
    // process's, whose content stays the same.
    let result = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            process.as_raw_fd(),
            &raw const vector,
            1usize,
            MADV_COLLAPSE,
            0u32,
        )
    };
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}
