//! Probes: who opens them, which connections they are, and the sockets that answer for sleepers.
//!
//! ```text
//!   kubelet ── connect ──> probe_sockops ──> probes <── gate_ingress: not use; to be steered?
//!                              │                │
//!                           kubelets            └──> probe_steer ──> responders ──> shim
//! ```

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use aya::maps::{MapData, SockHash};
use aya::programs::SkLookup;
use aya::programs::sk_lookup::SkLookupLink;
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

use crate::attach::AttachError;
use crate::layout::{KubeletKey, ProbeKey, ProbeValue};
use crate::maps::{MapError, Table, open};

/// Program for the root of the control groups: notes the connections that kubelets open.
pub const SOCKOPS_PROGRAM: &str = "probe_sockops";
/// Program for a pod's network namespace: leads noted connections to its responder.
pub const STEER_PROGRAM: &str = "probe_steer";

/// Whose connections are probes. Shared by the node's shims, and made smaller only when it is full.
pub struct Kubelets(Table<KubeletKey, u8>);

impl Kubelets {
    /// Opens the map pinned in `dir`.
    ///
    /// # Errors
    ///
    /// Also where the loader could not have probes noted on this kernel.
    pub fn open(dir: &Path) -> Result<Self, MapError> {
        Table::open(dir, "kubelets").map(Self)
    }

    /// From now on connections that such processes open are noted. Where there is no room, kubelets of
    /// other namespaces make it: a containerd that has one of its own leaves them behind with each start.
    pub fn admit(&mut self, kubelet: &KubeletKey) -> Result<(), MapError> {
        match self.0.insert(kubelet, &1) {
            Err(error) if is_full(&error) => {
                let keys = self.0.keys()?;
                for key in keys.iter().filter(|key| !key.is_beside(kubelet)) {
                    self.0.remove(key)?;
                }
                self.0.insert(kubelet, &1)
            }
            result => result,
        }
    }
}

fn is_full(error: &MapError) -> bool {
    matches!(
        error,
        MapError::Write { source: aya::maps::MapError::SyscallError(error), .. }
            if error.io_error.raw_os_error() == Some(libc::E2BIG)
    )
}

/// The sockets that answer probes, one for a network namespace at most.
pub struct Responders(SockHash<MapData, u64>);

impl Responders {
    const NAME: &'static str = "responders";

    /// Opens the map pinned in `dir`.
    ///
    /// # Errors
    ///
    /// Also where the loader could not have probes steered on this kernel.
    pub fn open(dir: &Path) -> Result<Self, MapError> {
        open(dir, Self::NAME, size_of::<u64>(), size_of::<u32>()).map(Self)
    }

    /// Makes `listener`, a listening TCP socket of the network namespace with the cookie `netns`, its
    /// responder, in place of another one. A socket that is closed goes by itself.
    pub fn set(&mut self, netns: u64, listener: BorrowedFd<'_>) -> Result<(), MapError> {
        self.0
            .insert(netns, listener.as_raw_fd(), 0)
            .map_err(|source| MapError::Write {
                map: Self::NAME,
                source,
            })
    }

    /// Takes the responder of the network namespace with the cookie `netns` out, if it has one.
    pub fn remove(&mut self, netns: u64) -> Result<(), MapError> {
        match self.0.remove(&netns) {
            Ok(()) | Err(aya::maps::MapError::KeyNotFound) => Ok(()),
            Err(aya::maps::MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT)
                    || error.io_error.raw_os_error() == Some(libc::EINVAL) =>
            {
                Ok(())
            }
            Err(source) => Err(MapError::Write {
                map: Self::NAME,
                source,
            }),
        }
    }
}

/// Notes a connection within the network namespace with the cookie `netns` as that of a probe: one
/// that its shim opens itself. `client` is bound and not connected yet. Both directions are noted, as
/// both pass the namespace's loopback. They are forgotten when the connection ends.
pub fn note_own_probe(
    probes: &mut Table<ProbeKey, ProbeValue>,
    netns: u64,
    client: SocketAddr,
    server: SocketAddr,
) -> Result<(), MapError> {
    // Cannot fail for a clock that every kernel has.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| {
        now.num_nanoseconds().try_into().unwrap_or_default()
    });
    let value = ProbeValue {
        steered_to: 0,
        time: now,
    };
    probes.insert(&ProbeKey::over_loopback(netns, server, client), &value)?;
    probes.insert(&ProbeKey::over_loopback(netns, client, server), &value)
}

/// The steering of a network namespace. Ends when dropped, and with the process.
pub struct SteerLink {
    _link: SkLookupLink,
}

/// Has noted connections of `netns` steered to its [responder](Responders), by the program pinned in
/// `pins`. Other programs of this kind that the namespace has go on beside it.
pub fn attach_steer(pins: &Path, netns: BorrowedFd<'_>) -> Result<SteerLink, AttachError> {
    let path = pins.join(STEER_PROGRAM);
    let mut program =
        SkLookup::from_pin(&path).map_err(|source| AttachError::Open { path, source })?;
    program
        .attach(netns.as_fd())
        .and_then(|id| program.take_link(id))
        .map(|link| SteerLink { _link: link })
        .map_err(|source| AttachError::Steer { source })
}
