//! The tap that takes held frames out of the pod's network namespace and back into it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
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

/// Where a pod's tap is made.
pub struct TapPlace {
    netns: OwnedFd,
    pins: PathBuf,
}

/// A tap device, up. It goes with [`remove`](Self::remove), or when dropped and no clone of its
/// descriptor is open any more; both wait for the kernel's network lock.
pub struct Tap {
    fd: Arc<OwnedFd>,
    name: String,
    ifindex: u32,
    link: Link,
    /// Any socket in its network namespace.
    socket: OwnedFd,
}

impl TapPlace {
    pub(super) fn new(netns: BorrowedFd<'_>, pins: &Path) -> Result<Self, GateError> {
        let netns = netns
            .try_clone_to_owned()
            .map_err(tap_error("create", NAME))?;
        Ok(Self {
            netns,
            pins: pins.into(),
        })
    }

    /// Makes a tap, silent, without any address, its ingress handled by the tap's program. Waits for the kernel's
    /// network lock: with nobody in its way it takes some ten milliseconds.
    pub fn make(&self) -> Result<Tap, GateError> {
        let netns = self.netns.as_fd();
        let (fd, name, ifindex, socket) = netns::enter(netns, create)??;
        let link = attach(&self.pins, TAP_PROGRAM, netns, &name, None)?;
        Ok(Tap {
            fd: Arc::new(fd),
            name,
            ifindex,
            link,
            socket,
        })
    }
}

impl Tap {
    /// Whether frames can be held in it.
    pub fn is_up(&self) -> bool {
        sys::is_up(self.socket.as_fd(), &self.name).unwrap_or(false)
    }

    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    pub fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    /// The next frame, in `room`; `None` if there is none now.
    pub fn read<'a>(&self, room: &'a mut Vec<u8>) -> Result<Option<&'a [u8]>, GateError> {
        room.clear();
        room.reserve_exact(LARGEST_FRAME);
        match rustix::io::read(&self.fd, spare_capacity(room)) {
            Ok(_) => Ok(Some(room)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(GateError::Frame {
                operation: "read",
                source: errno.into(),
            }),
        }
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
fn create() -> Result<(OwnedFd, String, u32, OwnedFd), GateError> {
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
    // Before it is up: it would announce itself, and the first held frames would be its own.
    disable_ipv6(&name).map_err(tap_error("disable IPv6 on", &name))?;
    sys::bring_up(socket.as_fd(), &name).map_err(tap_error("bring up", &name))?;
    Ok((tap.into(), name, ifindex, socket))
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
