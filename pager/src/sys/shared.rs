//! A file mapped for writing, whose content outlives this process.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A mapping of a file that this process made and that nobody shortens.
#[derive(Debug)]
pub(crate) struct SharedFile {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns the mapping; all access goes through atomics or the kernel.
unsafe impl Send for SharedFile {}

impl SharedFile {
    /// Maps the first `len` bytes. The file must have them, and keep them: touching a mapping
    /// behind a file's end is a SIGBUS.
    pub(crate) fn map(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast())
            .map(|start| Self { start, len })
            .ok_or_else(io::Error::last_os_error)
    }

    /// The word at a byte offset, a multiple of 4.
    pub(crate) fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len);
        // SAFETY: in bounds and aligned, by the assertion and the mapping's page alignment; other
        // processes that map the file use atomics too, or the kernel writes for this one.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    /// The long word at a byte offset, a multiple of 8.
    pub(crate) fn long(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8) && at + 8 <= self.len);
        // SAFETY: as for `word`.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    /// Address of `len` bytes for the kernel to write to.
    pub(super) fn target(&self, at: usize, len: usize) -> *mut libc::c_void {
        assert!(at + len <= self.len);
        // SAFETY: in bounds by the assertion.
        unsafe { self.start.as_ptr().add(at).cast() }
    }

    /// Copies bytes out, from an offset that is a multiple of 8.
    pub(crate) fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        for (index, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            let word = self.long(at + index * 8).load(Ordering::Acquire);
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        // SAFETY: mapped in `map`, and nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
