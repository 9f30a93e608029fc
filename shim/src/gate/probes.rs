//! The gate's part in probes: when they came, and which of them go to the pod's responder.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use podmotion_bpf::{
    Mode, PortFlags, PortKey, PortValue, ProbeKey, ProbeValue, Protocol, Responders, SteerLink,
    attach_steer, note_own_probe,
};

use super::sockets::Sockets;
use super::{ContainerKey, Flow, Gate, GateError, MOST_PORTS, monotonic};

/// When a port was probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeTimes {
    /// The last connection request, as `CLOCK_MONOTONIC`.
    pub last: Duration,
    /// The longest of the recent times between two of them; `None` until the second.
    pub gap: Option<Duration>,
}

/// The pod has a responder. The program is attached for as long as this lives.
pub(super) struct Steering {
    responders: Responders,
    _link: SteerLink,
}

impl Gate {
    /// Leads probes to `listener`, a listening TCP socket of the pod's network namespace, from now on
    /// for ports with [`PortFlags::STEER`]. Replaces another one.
    ///
    /// # Errors
    ///
    /// Above all, the kernel has no such programs: then nothing is pinned for them.
    pub fn start_steering(&mut self, listener: BorrowedFd<'_>) -> Result<(), GateError> {
        if let Some(steering) = &mut self.steering {
            return Ok(steering.responders.set(self.cookie, listener)?);
        }
        let mut responders = Responders::open(&self.pins)?;
        responders.set(self.cookie, listener)?;
        match attach_steer(&self.pins, self.netns.as_fd()) {
            Ok(link) => {
                self.steering = Some(Steering {
                    responders,
                    _link: link,
                });
                Ok(())
            }
            Err(error) => {
                responders.remove(self.cookie)?;
                Err(error.into())
            }
        }
    }

    /// Ends that. Ports do not have [`PortFlags::STEER`] any more; what the responder has accepted goes on.
    pub fn stop_steering(&mut self) -> Result<(), GateError> {
        let mut result = Ok(());
        for (port, flags) in self.flags.clone() {
            result = result.and(self.set_flags(port, flags.without(PortFlags::STEER)));
        }
        if let Some(mut steering) = self.steering.take() {
            let removed = steering.responders.remove(self.cookie);
            result = result.and(removed.map_err(GateError::from));
        }
        result
    }

    /// Has the probes of `ports` of `container` looked after, and nothing but them, in place of those
    /// before. A port that a container has, this one or another, or that is another's in the same
    /// way already, stays as it is, and so do those beyond as many as a container may have.
    pub fn set_probed(
        &mut self,
        container: ContainerKey,
        ports: &BTreeSet<u16>,
    ) -> Result<(), GateError> {
        let is_free = |port: &u16| {
            let other = self.by_probed_port.get(port);
            !self.by_port.contains_key(port) && other.is_none_or(|owner| *owner == container)
        };
        let free = ports.iter().copied().filter(is_free);
        let ports: BTreeSet<u16> = free.take(MOST_PORTS).collect();
        let old = self.books(container).probed.clone();
        for port in old.difference(&ports) {
            self.remove_probed(*port)?;
        }
        for port in ports.difference(&old) {
            self.books(container).probed.insert(*port);
            self.by_probed_port.insert(*port, container);
            self.tell_probed(*port)?;
        }
        Ok(())
    }

    /// Tells the programs of such a port, if it is one.
    pub(super) fn tell_probed(&mut self, port: u16) -> Result<(), GateError> {
        let Some(owner) = self.by_probed_port.get(&port).copied() else {
            return Ok(());
        };
        let flags = self.flags.get(&port).copied().unwrap_or_default();
        let value = PortValue::new(owner.0, Mode::Shared, flags.with(PortFlags::PROBED));
        self.replace(&PortKey::new(self.cookie, port, Protocol::Tcp), value)
    }

    /// Leaves such a port alone from now on, if it is one.
    pub(super) fn remove_probed(&mut self, port: u16) -> Result<(), GateError> {
        let Some(owner) = self.by_probed_port.remove(&port) else {
            return Ok(());
        };
        self.books(owner).probed.remove(&port);
        self.flags.remove(&port);
        let key = PortKey::new(self.cookie, port, Protocol::Tcp);
        Ok(self.maps.ports.remove(&key)?)
    }

    /// Gives `port`, which a container has, these flags in place of those before, until the port is
    /// taken away. The times noted for it are kept. Without a responder
    /// ([`start_steering`](Self::start_steering)) nothing is steered, whatever the flags say.
    pub fn set_flags(&mut self, port: u16, flags: PortFlags) -> Result<(), GateError> {
        let flags = match &self.steering {
            Some(_) => flags,
            None => flags.without(PortFlags::STEER),
        };
        if !self.by_port.contains_key(&port) && !self.by_probed_port.contains_key(&port) {
            return Ok(());
        }
        if self.flags.insert(port, flags) == Some(flags) {
            return Ok(());
        }
        self.tell_port(port)
    }

    /// When the ports of `container` were probed; those that never were are not there.
    pub fn probes(&self, container: ContainerKey) -> Result<BTreeMap<u16, ProbeTimes>, GateError> {
        let mut probes = BTreeMap::new();
        let entry = self.containers.get(&container);
        let ports = entry.map(|entry| entry.ports.iter().chain(&entry.probed));
        for port in ports.into_iter().flatten() {
            let key = PortKey::new(self.cookie, *port, Protocol::Tcp);
            let value = self.maps.ports.get(&key)?;
            if let Some(value) = value
                && let Some(last) = monotonic(value.probe_last)
            {
                let gap = monotonic(value.probe_gap);
                probes.insert(*port, ProbeTimes { last, gap });
            }
        }
        Ok(probes)
    }

    /// When a probe last came for a port that no container had then, as `CLOCK_MONOTONIC`.
    pub fn last_other_probe(&self) -> Result<Option<Duration>, GateError> {
        let entry = self.maps.netns.get(&self.cookie)?;
        Ok(entry.and_then(|entry| monotonic(entry.other_probe)))
    }

    /// How long ago the youngest request has arrived that waits for its answer and is no probe's.
    pub fn youngest_request(&self, sockets: &Sockets) -> Result<Option<Duration>, GateError> {
        let mut youngest = None;
        for (flow, age) in &sockets.unanswered {
            // One that has ended too: it may have had its answer after the sockets were looked at.
            if self.probes_of(*flow)?.is_empty() {
                youngest = Some(youngest.map_or(*age, |least: Duration| least.min(*age)));
            }
        }
        Ok(youngest)
    }

    /// Whether one of these connections is that of a probe which reaches the application, and has not
    /// ended.
    pub fn has_probe(&self, flows: &[Flow]) -> Result<bool, GateError> {
        for flow in flows {
            if self.probes_of(*flow)?.iter().any(|probe| probe.time != 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What is noted of this connection as that of a probe which reaches the application: from outside, over loopback.
    fn probes_of(&self, flow: Flow) -> Result<Vec<ProbeValue>, GateError> {
        let keys = [
            ProbeKey::from_outside(flow.local, flow.remote),
            ProbeKey::over_loopback(self.cookie, flow.local, flow.remote),
        ];
        let mut found = Vec::new();
        for key in keys {
            let probe = self.maps.probes.get(&key)?;
            found.extend(probe.filter(|probe| probe.steered_to == 0));
        }
        Ok(found)
    }

    /// Has the connection that this process is about to open within the pod, from `client`, which is
    /// bound, to `server`, taken for a probe: it is not use, and never steered.
    pub fn note_own_probe(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Result<(), GateError> {
        Ok(note_own_probe(
            &mut self.maps.probes,
            self.cookie,
            client,
            server,
        )?)
    }
}
