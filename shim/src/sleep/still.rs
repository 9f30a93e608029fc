//! Bringing a container to a standstill, which every sleep begins with.
//!
//! ```text
//!  hold packets -> freeze -> look at the sockets -> hold their connections -> look again
//!                               |  something is on its way in              |
//!                               +-------------> Trouble::Traffic <---------+
//! ```
//!
//! What arrives before the hold is seen by the looks (a connection not yet accepted, unread or
//! unacknowledged data): such a container is not idle. What arrives after it waits in the gate.
//! Between the two nothing is lost.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use podmotion_criu_driver::Freezer;
use podmotion_model::chain::Chain;

use super::{
    facts::Facts,
    look::{self, LookError, under_way},
    pod::Seat,
    trouble::Trouble,
};
use crate::gate::{Ends, sockets::Wanted};

/// A container that is to stand still.
pub struct Target<'a> {
    /// The container.
    pub facts: &'a Facts,
    /// Its init process.
    pub pid: i32,
    /// Its place at the gate.
    pub seat: &'a Seat,
    /// Ports that wake it; those it listens on where there are none given.
    pub fixed_ports: Option<&'a BTreeSet<u16>>,
    /// How long a request without an answer keeps it awake.
    pub answer_wait: Option<Duration>,
    /// For the task that reads held packets.
    pub runtime: tokio::runtime::Handle,
}

/// How long the freezer may take; a container in the middle of a long uninterruptible system call
/// is not idle.
pub const FREEZE: Duration = Duration::from_secs(2);

impl Target<'_> {
    /// Its freezer.
    pub fn freezer(&self) -> Result<Freezer, Trouble> {
        Ok(Freezer::new(&self.facts.freezer)?)
    }

    /// Holds its packets, freezes it and looks whether it is idle, and then has `sleep` put it to
    /// sleep with the ports that wake it. It is thawed where that fails; the gate is left as it is:
    /// opening it again is the lifecycle's decision.
    pub fn stand_still<T>(
        &self,
        ends: Ends,
        sleep: impl FnOnce(&Freezer, BTreeSet<u16>) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        self.seat.hold(&self.runtime)?;
        let freezer = self.freezer()?;
        let begun = Instant::now();
        freezer.freeze(FREEZE)?;
        let outcome = self
            .hold_connections(ends)
            .and_then(|ports| sleep(&freezer, ports));
        if outcome.is_err() {
            if let Err(error) = freezer.thaw() {
                log::warn!("thaw {}: {}", self.facts.id, Chain(&error));
            }
            log::debug!("{} stood still for {:?}", self.facts.id, begun.elapsed());
        }
        outcome
    }

    /// Looks at the sockets of the frozen container and holds its connections. Returns the ports
    /// that wake it.
    pub fn hold_connections(&self, ends: Ends) -> Result<BTreeSet<u16>, Trouble> {
        // It stands still: it opens none and closes none.
        let held = look::held(self.facts)?;
        // Where its sockets end with it, those that are only being opened would be lost. Where they stay, whoever opens one
        // goes on with that, and wakes it.
        let (all, tcp) = match ends {
            Ends::Gone => (Wanted::All, Wanted::Tcp),
            Ends::Alive => (Wanted::Own, Wanted::Own),
        };
        let first = self.seat.sockets(&held, all).map_err(LookError::from)?;
        if let Some(what) = first.under_way() {
            return Err(Trouble::Traffic(what));
        }
        let ports = self.fixed_ports.cloned().unwrap_or_else(|| first.ports());
        self.seat.set_ports(&ports, first.tcp_ports())?;
        self.seat.add_flows(&first.flows, ends)?;
        // What came in before the connections were held is in their queues now.
        let second = self.seat.sockets(&held, tcp).map_err(LookError::from)?;
        if let Some(what) = under_way(&second, self.seat)? {
            return Err(Trouble::Traffic(what));
        }
        let request = self.seat.youngest_request(&second)?;
        if request.is_some_and(|age| self.answer_wait.is_some_and(|limit| age < limit)) {
            return Err(Trouble::Traffic("a request has no answer yet"));
        }
        if second.flows.len() != first.flows.len() {
            return Err(Trouble::Traffic("a connection came or went"));
        }
        Ok(ports)
    }
}
