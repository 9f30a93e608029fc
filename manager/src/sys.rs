//! What the compiler cannot check.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::sys::inotify::{Inotify, InotifyEvent};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// An inotify that nobody else has: its descriptor stays open and the same.
#[derive(Debug)]
pub struct OwnInotify(Inotify);

impl OwnInotify {
    /// See [`Inotify::read_events`].
    ///
    /// # Errors
    /// The system's, `EAGAIN` where there is nothing to be read.
    pub fn read_events(&self) -> nix::Result<Vec<InotifyEvent>> {
        self.0.read_events()
    }
}

impl AsRawFd for OwnInotify {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Has the event loop tell when there is something to be read.
///
/// # Errors
/// When the system does not take it.
pub fn readable(inotify: Inotify) -> io::Result<AsyncFd<OwnInotify>> {
    let own = OwnInotify(inotify);
    // SAFETY: `own` owns its descriptor, never closes, replaces or hands it out, and gives the same one
    // each time.
    unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }.map_err(io::Error::from)
}
