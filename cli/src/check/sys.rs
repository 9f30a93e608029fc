//! System calls that no library wraps. All `unsafe` of this crate is here.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

// From the kernel's include/uapi/linux/userfaultfd.h.
const UFFD_API: u64 = 0xAA;
const UFFDIO_API: u64 = 0xc018_aa3f;
const USERFAULTFD_IOC_NEW: u64 = 0xaa00;
/// Fork, remap, remove and unmap events: what light sleep asks for.
const FEATURES: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6;

// From the kernel's include/uapi/linux/fs.h.
const PAGEMAP_SCAN: u64 = 0xc060_6610;
const PAGE_IS_PRESENT: u64 = 1 << 3;

#[repr(C)]
struct ApiArg {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// A userfaultfd of this process, by the system call.
pub fn userfaultfd() -> io::Result<OwnedFd> {
    // SAFETY: the argument is a word of flags.
    owned(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) })
}

/// A userfaultfd of this process, by an open `/dev/userfaultfd`.
pub fn userfaultfd_of(device: &File) -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the argument is a word of flags.
    owned(i64::from(unsafe {
        libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW as _, flags)
    }))
}

fn owned(result: i64) -> io::Result<OwnedFd> {
    match RawFd::try_from(result) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks a fresh userfaultfd for what light sleep needs.
pub fn handshake(uffd: &OwnedFd) -> io::Result<()> {
    let mut arg = ApiArg {
        api: UFFD_API,
        features: FEATURES,
        ioctls: 0,
    };
    // SAFETY: the request carries the size of `arg`, which lives as long as the call.
    match unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API as _, &raw mut arg) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Has the kernel look through the page tables of this process for `/proc/self/pagemap`.
pub fn scan_pages(pagemap: &File) -> io::Result<()> {
    let mut arg = ScanArg {
        size: size_of::<ScanArg>() as u64,
        // The first page, which nothing is mapped at.
        end: rustix::param::page_size() as u64,
        category_mask: PAGE_IS_PRESENT,
        return_mask: PAGE_IS_PRESENT,
        ..ScanArg::default()
    };
    // SAFETY: the request carries the size of `arg`, which lives as long as the call; without a vector the
    // kernel writes nowhere else.
    match unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut arg) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_carry_the_sizes_of_their_arguments() {
        assert_eq!((UFFDIO_API >> 16) & 0x3fff, size_of::<ApiArg>() as u64);
        assert_eq!((PAGEMAP_SCAN >> 16) & 0x3fff, size_of::<ScanArg>() as u64);
    }
}
