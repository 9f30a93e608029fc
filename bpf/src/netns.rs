//! Work in another network namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use thiserror::Error;

use crate::sys;

/// A network namespace could not be entered or identified.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// No thread to enter it with.
    #[error("cannot start a thread for the network namespace")]
    Thread(#[source] io::Error),
    /// `setns` refused.
    #[error("cannot enter the network namespace")]
    Enter(#[source] nix::Error),
    /// The kernel does not tell the cookie.
    #[error("cannot read the network namespace's cookie")]
    Cookie(#[source] io::Error),
}

/// Runs `work` in the network namespace `netns`, on a thread of its own that ends with it: the
/// caller's threads never change theirs. Blocks until `work` is done; a panic in it goes on in the
/// caller.
pub fn enter<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> T + Send,
) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, move || {
                setns(netns, CloneFlags::CLONE_NEWNET).map_err(NetnsError::Enter)?;
                Ok(work())
            })
            .map_err(NetnsError::Thread)?;
        match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The cookie of the network namespace that `socket` is in.
pub fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    sys::netns_cookie(socket)
}

/// The cookie of the network namespace `netns`: unique until the next boot, never used again.
pub fn cookie(netns: BorrowedFd<'_>) -> Result<u64, NetnsError> {
    enter(netns, || {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .map_err(|errno| NetnsError::Cookie(errno.into()))?;
        sys::netns_cookie(socket.as_fd()).map_err(NetnsError::Cookie)
    })?
}
