//! What a CRIU that was killed in the middle of a dump leaves behind, and how to undo it.
//!
//! The kernel detaches the tasks when their tracer dies, and CRIU's code inside them ends by
//! itself when its socket closes: it returns to where the task was. What nobody undoes are TCP
//! sockets in repair mode, which neither send nor receive, and a frozen cgroup.

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

/// Copies of the sockets of a process.
fn sockets(pid: i32) -> io::Result<Vec<OwnedFd>> {
    matching(pid, "socket:[")
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
