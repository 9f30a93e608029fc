//! Sockets that CRIU has left in repair mode, in which they neither send nor receive, and how to have
//! sockets go without a word. What else a killed CRIU leaves behind is undone by
//! [`insurance`](crate::insurance).

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::PidfdGetfdFlags;

use crate::launch;
use crate::sys;

/// Takes all TCP sockets of the processes out of repair mode. Returns how many there were.
///
/// The processes should be frozen, so that none uses a socket before.
pub(crate) fn leave_repair_mode(pids: &[i32]) -> io::Result<usize> {
    let mut healed = 0;
    let mut failure = None;
    for &pid in pids {
        let Ok(sockets) = sockets(pid) else { continue };
        for socket in sockets {
            // Fails on what is no TCP socket: nothing to do there.
            if !sys::in_repair_mode(socket.as_fd()).unwrap_or(false) {
                continue;
            }
            match sys::leave_repair_mode(socket.as_fd())
                .and_then(|()| sys::allow_address_reuse(socket.as_fd()))
            {
                Ok(()) => healed += 1,
                Err(e) => failure = Some(e),
            }
        }
    }
    failure.map_or(Ok(healed), Err)
}

/// Puts the established TCP connections of the processes into repair mode, so that the peers do not
/// notice their end.
pub(crate) fn silence(pids: &[i32]) {
    for &pid in pids {
        for socket in sockets(pid).unwrap_or_default() {
            // Refused for all that is no connection, which has nobody to notice.
            if sys::in_repair_mode(socket.as_fd()).is_ok_and(|on| !on) {
                let _ = sys::enter_repair_mode(socket.as_fd());
            }
        }
    }
}

/// Copies of the sockets of a process.
fn sockets(pid: i32) -> io::Result<Vec<OwnedFd>> {
    matching(pid, "socket:[")
}

/// The first process with a descriptor whose link in `/proc` is one of those that CRIU is known to
/// refuse, and what that is. CRIU's own line names only the call that failed.
pub(crate) fn unsupported(pids: &[i32]) -> Option<(i32, &'static str)> {
    pids.iter().find_map(|&pid| {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .ok()?
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .find_map(|link| match link.to_str()? {
                "anon_inode:[io_uring]" => Some("io_uring"),
                "anon_inode:[userfaultfd]" => Some("userfaultfd"),
                "anon_inode:[perf_event]" => Some("perf events"),
                "anon_inode:bpf-map" | "anon_inode:bpf-prog" => Some("BPF"),
                _ => None,
            })
            .map(|what| (pid, what))
    })
}

/// Copies of those descriptors of a process whose link in `/proc` starts with `prefix`.
pub(crate) fn matching(pid: i32, prefix: &str) -> io::Result<Vec<OwnedFd>> {
    let pidfd = launch::pidfd(pid)?;
    let mut copies = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let Ok(link) = fs::read_link(entry.path()) else {
            continue;
        };
        if !link.to_string_lossy().starts_with(prefix) {
            continue;
        }
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        match rustix::process::pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(copy) => copies.push(copy),
            // Closed since it was listed.
            Err(rustix::io::Errno::BADF) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(copies)
}
