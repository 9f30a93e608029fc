//! The tap that takes held frames out of the pod's network namespace and back into it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use podmotion_bpf::{Link, TAP_PROGRAM, attach, netlink, netns};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use super::{GateError, sys};

/// The kernel puts the first free number in place of `%d`.
const NAME: &str = "podmotion%d";
/// The largest that a tap can have.
const MTU: i32 = 65521;
/// Frames that wait in the tap for the shim to read them. A burst of clients comes at once.
pub(super) const QUEUE: i32 = 4096;
/// `lo` has an MTU of 64 KB and an Ethernet header.
const LARGEST_FRAME: usize = 65536 + 14;

/// A tap device. It goes with [`remove`](Self::remove), or when dropped and no clone of its
/// descriptor is open any more.
///
/// Making one and removing it takes the kernel some ten milliseconds each, so it stays, down and
/// without a use, from one hold to the next.
pub(super) struct Tap {
    fd: Arc<OwnedFd>,
    name: String,
    ifindex: u32,
    link: Link,
    up: bool,
    /// The frame last read. Has room for the largest from the first one on, until it goes down.
    last: Vec<u8>,
}

impl Tap {
    /// Makes a tap in `netns`, down, without any address, its ingress handled by the program pinned in
    /// `pins`.
    pub fn create(netns: BorrowedFd<'_>, pins: &Path) -> Result<Self, GateError> {
        let (fd, name, ifindex) = netns::enter(netns, create)??;
        let link = attach(pins, TAP_PROGRAM, netns, &name, None)?;
        Ok(Self {
            fd: Arc::new(fd),
            name,
            ifindex,
            link,
            up: false,
            last: Vec::new(),
        })
    }

    /// Brings it up, silent, or takes it down. Frames that are in it when it goes down are lost.
    pub fn set_running(&mut self, netns: BorrowedFd<'_>, up: bool) -> Result<(), GateError> {
        if self.up != up {
            netns::enter(netns, || set_running(&self.name, up))??;
            self.up = up;
            if !up {
                self.last = Vec::new();
            }
        }
        Ok(())
    }

    /// Whether frames can be held in it.
    pub fn is_up(&self) -> bool {
        self.up
    }

    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    pub fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    /// The next frame; `None` if there is none now.
    pub fn read(&mut self) -> Result<Option<&[u8]>, GateError> {
        self.last.clear();
        self.last.reserve_exact(LARGEST_FRAME);
        match rustix::io::read(&self.fd, spare_capacity(&mut self.last)) {
            Ok(_) => Ok(Some(&self.last)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(GateError::Frame {
                operation: "read",
                source: errno.into(),
            }),
        }
    }

    /// Writes the frame last read back.
    pub fn write_back_last(&self) -> Result<(), GateError> {
        self.write(&self.last)
    }

    /// Gives a frame back to the interface it came from. The kernel has it when this returns.
    pub fn write(&self, frame: &[u8]) -> Result<(), GateError> {
        match nix::unistd::write(&self.fd, frame) {
            Ok(_) => Ok(()),
            Err(errno) => Err(GateError::Frame {
                operation: "write",
                source: errno.into(),
            }),
        }
    }

    /// Removes the device, whoever still has its descriptor.
    pub fn remove(self, netns: BorrowedFd<'_>) -> Result<(), GateError> {
        let Self {
            fd,
            name,
            ifindex,
            link,
            ..
        } = self;
        link.detach()?;
        netns::enter(netns, || netlink::delete_link(ifindex))?
            .map_err(tap_error("remove", &name))?;
        drop(fd);
        Ok(())
    }
}

/// Runs in the network namespace.
fn create() -> Result<(OwnedFd, String, u32), GateError> {
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open("/dev/net/tun")
        .map_err(tap_error("open", "/dev/net/tun"))?;
    let name = sys::make_tap(tap.as_fd(), NAME).map_err(tap_error("create", NAME))?;
    let socket = any_socket(&name)?;
    let ifindex =
        sys::set_up(socket.as_fd(), &name, MTU, QUEUE).map_err(tap_error("configure", &name))?;
    Ok((tap.into(), name, ifindex))
}

/// Runs in the network namespace.
fn set_running(name: &str, up: bool) -> Result<(), GateError> {
    if up {
        // Before it is up: it would announce itself, and the first held frames would be its own.
        disable_ipv6(name).map_err(tap_error("disable IPv6 on", name))?;
    }
    let operation = if up { "bring up" } else { "take down" };
    sys::set_running(any_socket(name)?.as_fd(), name, up).map_err(tap_error(operation, name))
}

fn any_socket(name: &str) -> Result<OwnedFd, GateError> {
    socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|errno| tap_error("configure", name)(errno.into()))
}

fn disable_ipv6(name: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match File::options().write(true).open(path) {
        Ok(mut file) => io::Write::write_all(&mut file, b"1"),
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn tap_error(operation: &'static str, name: &str) -> impl FnOnce(io::Error) -> GateError {
    let name = name.to_owned();
    move |source| GateError::Tap {
        operation,
        name,
        source,
    }
}
