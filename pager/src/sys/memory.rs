//! Memory of other processes, and aligned buffers of our own.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// A zeroed buffer that begins on a page boundary. Mapped, not allocated: its memory goes back to
/// the system when it is dropped.
#[derive(Debug)]
pub(crate) struct PageBuffer {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory and hands it out by the usual borrow rules.
unsafe impl Send for PageBuffer {}

impl PageBuffer {
    /// `len` bytes, not zero.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let start = map(len, libc::PROT_READ | libc::PROT_WRITE)?;
        Ok(Self { start, len })
    }
}

fn map(len: usize, protection: libc::c_int) -> io::Result<NonNull<u8>> {
    // SAFETY: a new private anonymous mapping at an address of the kernel's choice.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)
}

/// A page that nobody can read. What is in it, and therefore the buffer's content, is never asked for: only its address.
#[derive(Debug)]
pub(crate) struct Nowhere(PageBuffer);

impl Nowhere {
    pub(crate) fn new() -> io::Result<Self> {
        let len = super::page_size() as usize;
        let start = map(len, libc::PROT_NONE)?;
        Ok(Self(PageBuffer { start, len }))
    }

    pub(crate) fn address(&self) -> u64 {
        self.0.start.as_ptr() as u64
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has `len` initialised bytes for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new`, and nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Reads memory of process `pid` from `address` on. Less than asked for when a page cannot be
/// read; an error when the first cannot.
pub(crate) fn read(pid: i32, address: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: into.len(),
    };
    // SAFETY: `local` describes `into`, which is ours for the call; `remote` is an address of the
    // other process, which the kernel checks.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
impl PageBuffer {
    /// Makes a part unreadable, for good.
    pub(crate) fn hide(&mut self, range: std::ops::Range<usize>) -> io::Result<()> {
        assert!(range.end <= self.len);
        // SAFETY: inside of the mapping. Whoever reads it afterwards gets a signal, not a value.
        let result = unsafe {
            libc::mprotect(
                self.start.as_ptr().add(range.start).cast(),
                range.len(),
                libc::PROT_NONE,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
