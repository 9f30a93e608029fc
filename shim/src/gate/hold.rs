//! Holding, and letting go.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use podmotion_bpf::{FlowKey, FlowValue};

use super::frame::Addresses;
use super::tap::{QUEUE, Tap};
use super::{
    ContainerKey, Ends, Flow, Gate, GateError, MOST_CONNECTIONS, Released, Standstill, sys,
};

impl Gate {
    /// Holds from now on what comes for the ports of `container` and for the connections `flows`.
    /// The first hold in the pod makes the tap, later ones bring it up. Again for a container that is held: as
    /// [`add_flows`](Self::add_flows).
    ///
    /// # Errors
    ///
    /// On an error nothing is held that was not held before.
    pub fn hold(&mut self, container: ContainerKey, flows: &[Flow]) -> Result<(), GateError> {
        self.raise_tap()?;
        let was_held = std::mem::replace(&mut self.books(container).held, true);
        let held = self.add_flows(container, flows, Ends::Gone).and_then(|()| {
            self.books(container).holding = true;
            self.tell_ports(container)
        });
        if held.is_err() && !was_held {
            self.release(container)?;
        }
        held
    }

    /// Has a tap that is up and known to the programs. Waits for the kernel's network lock, which on a busy node can take
    /// seconds; [`hold`](Self::hold) does it too, where it was not done before.
    pub fn raise_tap(&mut self) -> Result<(), GateError> {
        let netns = self.netns.as_fd();
        if let Some(tap) = &mut self.tap
            && let Err(error) = tap.set_running(netns, true)
        {
            // The pod is its own master: somebody with the right to can have removed it.
            log::warn!("the gate makes its tap anew: {error}");
            self.tap = None;
        }
        let ifindex = match &self.tap {
            Some(tap) => tap.ifindex(),
            None => {
                let mut tap = Tap::create(netns, &self.pins)?;
                tap.set_running(netns, true)?;
                self.tap.insert(tap).ifindex()
            }
        };
        self.register(ifindex)
    }

    /// Holds connections more: those that a look at the sockets of the frozen container has found
    /// since [`hold`](Self::hold), which must have come first. Or tells of known ones that what is
    /// with their ends has changed.
    ///
    /// # Errors
    ///
    /// [`GateError::TooManyConnections`]; nothing is changed then. On others, some of them are held.
    pub fn add_flows(
        &mut self,
        container: ContainerKey,
        flows: &[Flow],
        ends: Ends,
    ) -> Result<(), GateError> {
        let value = FlowValue::new(container.0);
        let value = match ends {
            Ends::Alive => value.alive(),
            Ends::Gone => value,
        };
        let new = flows.iter().filter(|flow| !self.by_flow.contains_key(flow));
        let connections = self.by_flow.len() + new.count();
        if connections > MOST_CONNECTIONS {
            return Err(GateError::TooManyConnections { connections });
        }
        for flow in flows {
            self.books(container).flows.insert(*flow);
            self.by_flow.insert(*flow, container);
            let key = FlowKey::new(self.cookie, flow.local, flow.remote);
            self.maps.flows.insert(&key, &value)?;
            self.tell_other(container, flow.local.port())?;
        }
        Ok(())
    }

    /// A connection of `container` with this port has come or gone: what it means for another
    /// container that has the port.
    fn tell_other(&mut self, container: ContainerKey, port: u16) -> Result<(), GateError> {
        match self.by_port.get(&port) {
            Some(owner) if *owner != container => self.tell_port(port),
            _ => Ok(()),
        }
    }

    /// Answers keepalives for these connections of `container`, which are held, in place of their
    /// sockets. Those that are not held stay as they are.
    pub fn answer_keepalives(
        &mut self,
        container: ContainerKey,
        connections: &[(Flow, Standstill)],
    ) -> Result<(), GateError> {
        let held = &self.books(container).flows;
        let known: Vec<_> = connections
            .iter()
            .filter(|(flow, _)| held.contains(flow))
            .collect();
        for (flow, at) in known {
            let key = FlowKey::new(self.cookie, flow.local, flow.remote);
            let value = FlowValue::new(container.0).answering(at.rcv_nxt, at.snd_nxt, at.window);
            self.maps.flows.insert(&key, &value)?;
        }
        Ok(())
    }

    /// The tap's descriptor, non-blocking, from the first hold on: readable when
    /// [`read_held`](Self::read_held) has something to do. After a [`hold`](Self::hold) it can be
    /// another one.
    #[must_use]
    pub fn tap_fd(&self) -> Option<Arc<OwnedFd>> {
        self.tap.as_ref().map(Tap::fd)
    }

    /// Takes all frames from the tap into the queue. Returns the containers they are for, which are
    /// to be woken.
    pub fn read_held(&mut self) -> Result<BTreeSet<ContainerKey>, GateError> {
        self.empty_tap()?;
        Ok(self.take_wanted())
    }

    /// The containers that frames are held for and nobody was told of yet: the end of another one's
    /// hold has taken them from the tap.
    pub fn take_wanted(&mut self) -> BTreeSet<ContainerKey> {
        std::mem::take(&mut self.wanted)
    }

    /// Takes what is in the tap into the queue. What comes meanwhile makes it readable once more: a
    /// flood keeps nobody here.
    fn empty_tap(&mut self) -> Result<(), GateError> {
        let Some(tap) = self.tap.as_mut() else {
            return Ok(());
        };
        for _ in 0..=QUEUE {
            let Some(frame) = tap.read()? else {
                break;
            };
            let Some(addresses) = Addresses::of(frame) else {
                continue;
            };
            let owner = self
                .by_flow
                .get(&addresses.flow())
                .or_else(|| self.by_port.get(&addresses.local.port()))
                .copied();
            match owner.filter(|owner| self.containers.get(owner).is_some_and(|c| c.held)) {
                Some(container) => {
                    // Also with a full queue: the sender is there and tries again.
                    self.wanted.insert(container);
                    self.queue.push(container, frame, Instant::now());
                }
                // Taken by a program that had just read the entry of a hold that has ended.
                None => {
                    // Lost as one that the queue has no room for; those behind it are not.
                    if let Err(error) = tap.write_back_last() {
                        log::warn!("a frame that nobody is held for: {error}");
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends the hold of `container`, writes its frames back in their order and, when nobody is held
    /// any more, takes the tap down: [`let_through`](Self::let_through) and [`settle`](Self::settle).
    pub fn release(&mut self, container: ContainerKey) -> Result<Released, GateError> {
        let released = self.let_through(container);
        let settled = self.settle();
        released.and_then(|released| settled.map(|()| released))
    }

    /// Ends the hold of `container` and then writes its frames back in their order. Frames of other
    /// containers stay, and so does the tap until [`settle`](Self::settle). Fast: this is what
    /// clients wait for.
    ///
    /// # Errors
    ///
    /// The hold has ended and what could be written is written even then.
    pub fn let_through(&mut self, container: ContainerKey) -> Result<Released, GateError> {
        if !self.containers.get(&container).is_some_and(|c| c.held) {
            return Ok(Released::default());
        }
        let mut result = Ok(());
        for flow in std::mem::take(&mut self.books(container).flows) {
            let key = FlowKey::new(self.cookie, flow.local, flow.remote);
            result = result.and(self.maps.flows.remove(&key).map_err(GateError::from));
            self.by_flow.remove(&flow);
            result = result.and(self.tell_other(container, flow.local.port()));
        }
        self.books(container).holding = false;
        result = result.and(self.tell_ports(container));
        // Still booked as held: what is in the tap goes behind what is in the queue.
        result = result.and(self.empty_tap());
        self.wanted.remove(&container);
        let mut released = self.write_back(container);
        self.books(container).held = false;
        match self.counters() {
            Ok(packets) => released.packets = packets,
            Err(error) => result = result.and(Err(error)),
        }
        result.map(|()| released)
    }

    /// Takes the tap down if nobody is held. Until then [`read_held`](Self::read_held) lets the last
    /// frames through. Waits for programs that still run and for the kernel to take the device down:
    /// some 20 to 100 milliseconds.
    pub fn settle(&mut self) -> Result<(), GateError> {
        let up = self.tap.as_ref().is_some_and(Tap::is_up);
        if !up || self.containers.values().any(|container| container.held) {
            return Ok(());
        }
        self.lower_tap()
    }

    fn write_back(&mut self, container: ContainerKey) -> Released {
        let mut released = Released {
            lost: self.queue.take_overflow(container),
            ..Released::default()
        };
        for held in self.queue.take(container) {
            released
                .held_for
                .get_or_insert_with(|| held.since.elapsed());
            match self.tap.as_ref().map(|tap| tap.write(&held.frame)) {
                Some(Ok(())) => {
                    released.frames += 1;
                    released.bytes += held.frame.len();
                }
                _ => released.lost += 1,
            }
        }
        released
    }

    /// Nobody is held and no entry says so any more; but a program may be running that has read one
    /// before, and then puts a frame into the tap.
    fn lower_tap(&mut self) -> Result<(), GateError> {
        sys::wait_for_running_programs();
        let result = self.empty_tap();
        let result = result.and(self.register(0));
        let netns = self.netns.as_fd();
        let lowered = match &mut self.tap {
            Some(tap) => tap.set_running(netns, false),
            None => Ok(()),
        };
        result.and(lowered)
    }
}
