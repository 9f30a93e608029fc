//! Holding, and letting go.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use podmotion_bpf::{FlowKey, FlowValue};

use super::frame::Addresses;
use super::tap::Tap;
use super::{ContainerKey, Ends, Flow, Gate, GateError, Released, Standstill, sys};

impl Gate {
    /// Holds from now on what comes for the ports of `container` and for the connections `flows`.
    /// The first hold in the pod makes the tap. Again for a container that is held: as
    /// [`add_flows`](Self::add_flows).
    ///
    /// # Errors
    ///
    /// On an error nothing is held that was not held before.
    pub fn hold(&mut self, container: ContainerKey, flows: &[Flow]) -> Result<(), GateError> {
        if self.tap.is_none() {
            let tap = Tap::create(self.netns.as_fd(), &self.pins)?;
            let ifindex = tap.ifindex();
            self.tap = Some(tap);
            if let Err(error) = self.register(ifindex) {
                self.tap = None;
                return Err(error);
            }
        }
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

    /// Holds connections more: those that a look at the sockets of the frozen container has found
    /// since [`hold`](Self::hold), which must have come first. Or tells of known ones that what is
    /// with their ends has changed.
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

    /// The tap's descriptor, non-blocking, while somebody is held: readable when
    /// [`read_held`](Self::read_held) has something to do. It is another one after each time that
    /// nobody was.
    #[must_use]
    pub fn tap_fd(&self) -> Option<Arc<OwnedFd>> {
        self.tap.as_ref().map(Tap::fd)
    }

    /// Takes all frames from the tap into the queue. Returns the containers they are for, which are
    /// to be woken.
    pub fn read_held(&mut self) -> Result<BTreeSet<ContainerKey>, GateError> {
        let mut wanted = BTreeSet::new();
        let Some(tap) = self.tap.as_mut() else {
            return Ok(wanted);
        };
        while let Some(frame) = tap.read()? {
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
                    wanted.insert(container);
                    self.queue.push(container, frame, Instant::now());
                }
                // Taken by a program that had just read the entry of a hold that has ended.
                None => tap.write_back_last()?,
            }
        }
        Ok(wanted)
    }

    /// Ends the hold of `container`, writes its frames back in their order and, when nobody is held
    /// any more, removes the tap: [`let_through`](Self::let_through) and [`settle`](Self::settle).
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
        result = result.and(self.read_held().map(drop));
        let mut released = self.write_back(container);
        self.books(container).held = false;
        match self.counters() {
            Ok(packets) => released.packets = packets,
            Err(error) => result = result.and(Err(error)),
        }
        result.map(|()| released)
    }

    /// Removes the tap if nobody is held. Until then [`read_held`](Self::read_held) lets the last
    /// frames through. Waits for programs that still run and for the kernel to take the device down:
    /// some 20 to 100 milliseconds.
    pub fn settle(&mut self) -> Result<(), GateError> {
        if self.tap.is_none() || self.containers.values().any(|container| container.held) {
            return Ok(());
        }
        self.remove_tap()
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
    fn remove_tap(&mut self) -> Result<(), GateError> {
        sys::wait_for_running_programs();
        let result = self.read_held().map(drop);
        let result = result.and(self.register(0));
        match self.tap.take() {
            Some(tap) => result.and(tap.remove(self.netns.as_fd())),
            None => result,
        }
    }
}
