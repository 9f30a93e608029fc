//! What can be seen of a running container from outside, for the idle policy.

use std::{collections::BTreeSet, path::Path, time::Duration};

use podmotion_criu_driver::{Freezer, freezer::FreezerError};
use podmotion_model::{idle::Room, probe::PortSeen};

use super::{
    facts::Facts,
    pod::Seat,
    room::{self, RoomError},
};
use crate::gate::{
    GateError,
    sockets::{self, Held, Sockets, Wanted},
};

/// What a look found.
#[derive(Debug, Clone, Default)]
pub struct Looked {
    /// Its TCP connections.
    pub connections: usize,
    /// Ports that the container listens on.
    pub listening: BTreeSet<u16>,
    /// Time of the last packet that counted, on the monotonic clock.
    pub last_packet: Option<Duration>,
    /// CPU time used in all.
    pub cpu: Option<Duration>,
    /// The age of the youngest request without an answer.
    pub unanswered: Option<Duration>,
    /// Bytes of memory that an image of it would have at most.
    pub memory: Option<u64>,
    /// What the file system of the images has left.
    pub disk: Option<Room>,
    /// The probes of its ports.
    pub probes: Vec<PortSeen>,
    /// What goes on at its sockets at this moment: it would be stopped in the middle of that, and not sleep.
    pub under_way: Option<&'static str>,
    /// Why no checkpoint could be made of it now, where that can be seen.
    pub obstacle: Option<String>,
    /// Why nothing of this is known.
    pub failed: Option<String>,
}

/// A look that failed.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The container's processes could not be told.
    #[error(transparent)]
    Processes(#[from] FreezerError),
    /// Its sockets could not be told.
    #[error(transparent)]
    Sockets(#[from] sockets::SocketError),
    /// The descriptors of its processes could not be told.
    #[error("list the descriptors of the container's processes: {0}")]
    Descriptors(#[source] std::io::Error),
    /// The gate did not answer.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The room for images could not be told.
    #[error(transparent)]
    Room(#[from] RoomError),
}

/// The container's processes.
pub fn processes(facts: &Facts) -> Result<Vec<i32>, LookError> {
    Ok(Freezer::new(&facts.freezer)?.processes()?)
}

/// The container's sockets.
pub fn held(facts: &Facts) -> Result<Held, LookError> {
    sockets::held(&processes(facts)?).map_err(LookError::Descriptors)
}

/// Looks at everything; images would go below `images`. The ports that count and wake from now on are
/// those found, unless they are `fixed`.
pub fn look(
    facts: &Facts,
    seat: &Seat,
    images: &Path,
    fixed: Option<&BTreeSet<u16>>,
) -> Result<Looked, LookError> {
    let seen = seat.sockets(&held(facts)?, Wanted::Own)?;
    let listening = seen.ports();
    seat.set_ports(fixed.unwrap_or(&listening), seen.tcp_ports())?;
    let probes = seat
        .probes()?
        .into_iter()
        .map(|(port, times)| PortSeen {
            port,
            listening: seen.tcp_ports().contains(&port),
            last: times.last,
            gap: times.gap,
        })
        .collect();
    let obstacle = seen
        .mptcp_listeners
        .first()
        .map(|address| format!("it listens on {address} with MPTCP, which CRIU cannot checkpoint"));
    let last_packet = seat.last_activity()?.max(seat.last_other_activity()?);
    Ok(Looked {
        connections: seen.flows.len(),
        listening,
        last_packet,
        cpu: facts.cgroup.cpu_time(),
        unanswered: seat.youngest_request(&seen)?,
        memory: facts.cgroup.anonymous_memory(),
        disk: Some(room::disk(images)?),
        obstacle,
        probes,
        under_way: under_way(&seen, seat)?,
        failed: None,
    })
}

/// What goes on at a container's sockets that must not be cut short.
pub fn under_way(seen: &Sockets, seat: &Seat) -> Result<Option<&'static str>, GateError> {
    if let Some(what) = seen.under_way() {
        return Ok(Some(what));
    }
    // HTTP/2 says something before it answers, so its sockets may not show it.
    let probed = seat.has_probe(&seen.flows)?;
    Ok(probed.then_some("a probe is under way"))
}
