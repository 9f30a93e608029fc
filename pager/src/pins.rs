//! What keeps the memory of a process where it is: a device or the kernel itself writes to pages of it,
//! whatever is mapped there later. Who has such a thing is not moved.
//!
//! | seen by | what |
//! |---|---|
//! | `VmPin` | pages pinned for long: buffers registered with io_uring, InfiniBand |
//! | descriptor or mapping `[io_uring]` | rings and rings of buffers can lie in the program's own memory, and reads can be under way; `fdinfo` shows neither. A ring works on without its descriptor (`IORING_REGISTER_RING_FDS`), so its mapping counts too |
//! | mapping `[aio]` | reads can be under way: the kernel tells nobody which |
//! | mapping of an XDP socket's fill or completion ring | its packets come into memory of the program's own |
//! | descriptor of a character device | its driver can do as it likes with memory; all but those known not to |
//! | descriptor `[userfaultfd]` | the program looks after missing pages itself, and there is one such descriptor for a range |
//!
//! What needs no rule: a thread inside of a read, with `O_DIRECT` or without, stops when the read is
//! done. Pages lent to a pipe (`vmsplice`) or to a socket (`MSG_ZEROCOPY`) are only read from; the
//! other side keeps the page that was lent, with its content, and the program must not write to it
//! until that has arrived.

use std::cmp::Ordering;
use std::fs;
use std::io;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::sys::kinship;

/// What process `pid` with these threads has of that kind. None when there is nothing.
pub(crate) fn pinned(pid: i32, threads: &[i32]) -> io::Result<Option<String>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    if let Some(pages) = pinned_pages(&status) {
        return Ok(Some(format!("{pages} of pinned memory")));
    }
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    if let Some(mapping) = maps.lines().find_map(pinning_mapping) {
        return Ok(Some(mapping));
    }
    // A thread can have descriptors of its own.
    let mut tables = vec![pid];
    for &thread in threads {
        let known = |table: &i32| match kinship::compare_files(*table, thread) {
            Ok(order) => Ok(order == Ordering::Equal),
            // It has ended.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(true),
            Err(error) => Err(error),
        };
        let mut new = true;
        for table in &tables {
            new &= !known(table)?;
        }
        if new {
            tables.push(thread);
        }
    }
    for table in tables {
        if let Some(found) = pinning_descriptor(table)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// `VmPin` where it is not 0.
fn pinned_pages(status: &str) -> Option<&str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmPin:"))
        .map(str::trim)
        .filter(|pages| *pages != "0 kB")
}

/// The name of a mapping, from its line in `/proc/PID/maps`, if it shows that memory is pinned.
fn pinning_mapping(line: &str) -> Option<String> {
    /// `XDP_UMEM_PGOFF_FILL_RING` and `XDP_UMEM_PGOFF_COMPLETION_RING`.
    const XDP: [&str; 2] = ["100000000", "180000000"];
    let mut fields = line.split_ascii_whitespace().skip(2);
    let (offset, name) = (fields.next()?, fields.nth(2)?);
    let pins = name.starts_with("anon_inode:[io_uring]")
        || name.starts_with("/[aio]")
        || name.starts_with("socket:") && XDP.contains(&offset);
    pins.then(|| name.to_owned())
}

/// What is in the descriptor table of a thread.
fn pinning_descriptor(thread: i32) -> io::Result<Option<String>> {
    for entry in fs::read_dir(format!("/proc/{thread}/fd"))? {
        let path = entry?.path();
        // It can have been closed, by a thread that is not stopped yet.
        let Ok(target) = fs::read_link(&path) else {
            continue;
        };
        let target = target.to_string_lossy();
        let pins = [
            "anon_inode:[io_uring]",
            "anon_inode:[userfaultfd]",
            "anon_inode:[vfio",
        ];
        if pins.into_iter().any(|pin| target.starts_with(pin)) {
            return Ok(Some(target.into_owned()));
        }
        // What is no file has no path. A device can be mounted anywhere.
        if !target.starts_with('/') {
            continue;
        }
        // Not from a file server that may not answer.
        let flags = AtFlags::STATX_DONT_SYNC;
        match statx(CWD, &path, flags, StatxFlags::TYPE) {
            Ok(found) if u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFCHR => {
                if !is_harmless(found.stx_rdev_major, found.stx_rdev_minor) {
                    return Ok(Some(target.into_owned()));
                }
            }
            Ok(_) | Err(rustix::io::Errno::NOENT) => {}
            // A file server that keeps its files to itself; devices are in file systems of the node.
            Err(_) if !target.starts_with("/dev/") => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Character devices that touch memory in system calls alone (the kernel's `devices.txt`).
fn is_harmless(major: u32, minor: u32) -> bool {
    match major {
        // null, zero, full, random, urandom, kmsg
        1 => matches!(minor, 3 | 5 | 7 | 8 | 9 | 11),
        // Terminals: the virtual ones, tty console ptmx, and pseudo terminals.
        4 | 5 | 136..=143 => true,
        // net/tun, fuse
        10 => matches!(minor, 200 | 229),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_nothing_pinned() {
        let pid = std::process::id() as i32;
        assert_eq!(pinned(pid, &[pid]).unwrap(), None);
    }

    #[test]
    fn pinned_pages_are_seen() {
        assert_eq!(pinned_pages("VmLck:\t 8 kB\nVmPin:\t       0 kB\n"), None);
        assert_eq!(pinned_pages("VmPin:\t     512 kB\n"), Some("512 kB"));
        assert_eq!(pinned_pages("VmLck:\t 8 kB\n"), None);
    }

    #[test]
    fn rings_are_seen_by_their_mappings() {
        let seen = |line| pinning_mapping(line).is_some();
        assert!(seen(
            "7f00-7f01 rw-s 00000000 00:0f 1059    anon_inode:[io_uring]"
        ));
        assert!(seen(
            "7f00-7f01 rw-s 00000000 00:10 77     /[aio] (deleted)"
        ));
        assert!(seen("7f00-7f01 rw-s 100000000 00:08 99     socket:[99]"));
        // Of a packet socket.
        assert!(!seen("7f00-7f01 rw-s 00000000 00:08 99     socket:[99]"));
        assert!(!seen("7f00-7f01 rw-p 00000000 00:00 0"));
        assert!(!seen("7f00-7f01 rw-p 00000000 00:00 0      [heap]"));
        assert!(!seen(
            "7f00-7f01 r--p 100000000 08:01 12    /tmp/socket:[1]"
        ));
    }

    #[test]
    fn devices_are_refused_but_for_those_that_are_known() {
        // /dev/null, /dev/pts/3, /dev/net/tun
        assert!(is_harmless(1, 3) && is_harmless(136, 3) && is_harmless(10, 200));
        // /dev/mem, /dev/kvm, /dev/vhost-net, /dev/nvidia0, /dev/infiniband/uverbs0
        assert!(!is_harmless(1, 1) && !is_harmless(10, 232) && !is_harmless(10, 238));
        assert!(!is_harmless(195, 0) && !is_harmless(231, 192));
    }
}
