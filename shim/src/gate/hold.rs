//! Holding, and letting go.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use podmotion_bpf::{FlowKey, FlowValue};

use super::frame::Addresses;
use super::tap::{QUEUE, Tap, TapPlace};
use super::{
    ContainerKey, Ends, Flow, Gate, GateError, MOST_CONNECTIONS, Released, Standstill, sys,
};

impl Gate {
    /// Holds from now on what comes for the ports of `container` and for the connections `flows`.
    /// The first hold in the pod makes the tap, unless [`set_tap`](Self::set_tap) was called before. Again for a
    /// container that is held: as [`add_flows`](Self::add_flows).
    ///
    /// # Errors
    ///
    /// On an error nothing is held that was not held before.
    pub fn hold(&mut self, container: ContainerKey, flows: &[Flow]) -> Result<(), GateError> {
        let ifindex = match &self.tap {
            Some(tap) => tap.ifindex(),
            None => self.tap.insert(self.tap_place()?.make()?).ifindex(),
        };
        self.register(ifindex)?;
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

    /// Where the pod's tap is made, which waits for the kernel's network lock, on a busy node for seconds: nobody
    /// should have to wait for the gate meanwhile.
    pub fn tap_place(&self) -> Result<TapPlace, GateError> {
        TapPlace::new(self.netns(), &self.pins)
    }

    /// Whether there is a tap that frames can be held in. The pod is its own master: somebody with the right to can
    /// have removed it, or taken it down.
    pub fn has_tap(&self) -> bool {
        self.tap.as_ref().is_some_and(Tap::is_up)
    }

    /// From now on frames are held in `tap`. Returns the one before: to drop it waits for the network lock too.
    pub fn set_tap(&mut self, tap: Tap) -> Option<Tap> {
        self.tap.replace(tap)
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

    /// How many of the frames that were read since it was last asked nobody was held for. There are a few at the end of a
    /// hold; there is no end to them where somebody in the pod writes into the tap himself.
    pub fn take_strays(&mut self) -> u32 {
        std::mem::take(&mut self.strays)
    }

    /// Takes what is in the tap into the queue. What comes meanwhile makes it readable once more: a
    /// flood keeps nobody here.
    fn empty_tap(&mut self) -> Result<(), GateError> {
        let Some(tap) = &self.tap else {
            return Ok(());
        };
        let mut room = Vec::new();
        for _ in 0..=QUEUE {
            let Some(frame) = tap.read(&mut room)? else {
                break;
            };
            let Some(addresses) = Addresses::of(frame) else {
                self.strays += 1;
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
                    self.strays += 1;
                    // Lost as one that the queue has no room for; those behind it are not.
                    if let Err(error) = tap.write(frame) {
                        log::warn!("a frame that nobody is held for: {error}");
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends the hold of `container` and then writes its frames back in their order. Frames of other
    /// containers stay. A program that still runs can put one more into the tap, which
    /// [`read_held`](Self::read_held) lets through. Fast: this is what clients wait for.
    ///
    /// # Errors
    ///
    /// The hold has ended and what could be written is written even then.
    pub fn release(&mut self, container: ContainerKey) -> Result<Released, GateError> {
        if !self.containers.get(&container).is_some_and(|c| c.held) {
            return Ok(Released {
                packets: self.counters()?,
                ..Released::default()
            });
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
        if !self.containers.values().any(|container| container.held) {
            result = result.and(self.register(0));
        }
        match self.counters() {
            Ok(packets) => released.packets = packets,
            Err(error) => result = result.and(Err(error)),
        }
        result.map(|()| released)
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

    /// Lets through what is in the tap, also what programs that still run put into it. Nobody is held any more.
    pub(super) fn drain(&mut self) -> Result<(), GateError> {
        if self.tap.is_none() {
            return Ok(());
        }
        sys::wait_for_running_programs();
        self.empty_tap()
    }
}
