//! A container's place at the gate of its pod: what counts as its use, and what is held for it.

use super::*;

/// A container's place at the gate of its pod. Dropping it takes the container out.
pub struct Seat {
    pub(super) pod: Arc<PodGate>,
    pub(super) key: ContainerKey,
    /// Its probes are use, by the user's will or because nobody could answer them.
    pub(super) count_probes: bool,
    pub(super) steering: Mutex<Steering>,
}

/// Which probes go to the responder.
#[derive(Default)]
pub(super) struct Steering {
    /// The container's ports, those that nothing else is done about too, and since when they are.
    ports: BTreeMap<u16, Duration>,
    /// Those of them that a TCP socket listens on. On the others the kernel answers with the truth.
    listening: BTreeSet<u16>,
    on: bool,
}

impl Seat {
    /// From now on packets to `ports` count and wake. On those that are `listening` probes can be
    /// answered, also on others than `ports`.
    pub fn set_ports(
        &self,
        ports: &BTreeSet<u16>,
        listening: BTreeSet<u16>,
    ) -> Result<(), GateError> {
        let mut gate = lock(&self.pod.gate);
        gate.set_ports(self.key, ports)?;
        gate.set_probed(self.key, &(&listening - ports))?;
        let all = ports | &listening;
        let mut steering = lock(&self.steering);
        let now = crate::sleep::monotonic();
        steering.ports.retain(|port, _| all.contains(port));
        if let Some(place) = lock(&self.pod.places).get_mut(&self.key) {
            place.ports.clone_from(&all);
        }
        for port in &all {
            steering.ports.entry(*port).or_insert(now);
        }
        steering.listening = listening;
        self.tell_flags(&mut gate, &steering)
    }

    /// Leads probes of an awake container to the responder, which passes them on and sees what becomes of
    /// them; or does so no more.
    pub fn learn(&self, on: bool) -> Result<(), GateError> {
        self.steer(&mut lock(&self.pod.gate), on)
    }

    fn steer(&self, gate: &mut Gate, on: bool) -> Result<(), GateError> {
        let mut steering = lock(&self.steering);
        steering.on = on;
        self.tell_flags(gate, &steering)
    }

    fn tell_flags(&self, gate: &mut Gate, steering: &Steering) -> Result<(), GateError> {
        for port in steering.ports.keys() {
            let flags = match (self.count_probes, steering.on) {
                (true, _) => PortFlags::COUNT_PROBES,
                (false, true) if steering.listening.contains(port) => PortFlags::STEER,
                (false, _) => PortFlags::NONE,
            };
            gate.set_flags(*port, flags)?;
        }
        Ok(())
    }

    /// When its ports were probed; none where probes are use like everything else. A probe that came
    /// before the container was known to have any of them may have been for each.
    pub fn probes(&self) -> Result<BTreeMap<u16, ProbeTimes>, GateError> {
        if self.count_probes {
            return Ok(BTreeMap::new());
        }
        let gate = lock(&self.pod.gate);
        let mut probes = gate.probes(self.key)?;
        if let Some(last) = gate.last_other_probe()? {
            let ports = &lock(&self.steering).ports;
            for (port, _) in ports.iter().filter(|(_, since)| last <= **since) {
                let gap = None;
                probes.entry(*port).or_insert(ProbeTimes { last, gap });
            }
        }
        Ok(probes)
    }

    /// Whether one of these connections is a probe's that the application has not answered, or whose
    /// client has not gone yet.
    pub fn has_probe(&self, flows: &[Flow]) -> Result<bool, GateError> {
        lock(&self.pod.gate).has_probe(flows)
    }

    /// See [`Gate::youngest_request`].
    pub fn youngest_request(&self, sockets: &Sockets) -> Result<Option<Duration>, GateError> {
        lock(&self.pod.gate).youngest_request(sockets)
    }

    /// Time of the last packet that counted, on the monotonic clock.
    pub fn last_activity(&self) -> Result<Option<Duration>, GateError> {
        lock(&self.pod.gate).last_activity(self.key)
    }

    /// Time of the last packet for connections that the pod's containers have opened themselves.
    pub fn last_other_activity(&self) -> Result<Option<Duration>, GateError> {
        lock(&self.pod.gate).last_other_activity()
    }

    /// Holds what comes for the container from now on; probes go to the responder.
    pub fn hold(&self, runtime: &tokio::runtime::Handle) -> Result<(), GateError> {
        self.pod.have_tap()?;
        let tap = {
            let mut gate = lock(&self.pod.gate);
            // Before the hold: no probe is held.
            self.steer(&mut gate, true)?;
            gate.hold(self.key, &[])?;
            gate.tap_fd()
        };
        let Some(tap) = tap else { return Ok(()) };
        let mut reading = lock(&self.pod.reading);
        let reads =
            |reading: &Reading| Arc::ptr_eq(&reading.tap, &tap) && !reading.task.is_finished();
        if !reading.as_ref().is_some_and(reads) {
            if let Some(before) = reading.take() {
                before.task.abort();
            }
            let task = runtime.spawn(read_tap(Arc::downgrade(&self.pod), Arc::clone(&tap)));
            *reading = Some(Reading { tap, task });
        }
        Ok(())
    }

    /// Holds packets of these connections as well, all but those that their ends deal with.
    pub fn add_flows(&self, flows: &[Flow], ends: Ends) -> Result<(), GateError> {
        lock(&self.pod.gate).add_flows(self.key, flows, ends)
    }

    /// Answers keepalives for these connections while they are held.
    pub fn answer_keepalives(&self, connections: &[(Flow, Standstill)]) -> Result<(), GateError> {
        lock(&self.pod.gate).answer_keepalives(self.key, connections)
    }

    /// Ends the hold and gives back what was held, in order, in some microseconds. Probes go to the responder until
    /// the [release](Self::release).
    pub fn let_in(&self) -> Result<Released, GateError> {
        let mut gate = lock(&self.pod.gate);
        let released = gate.release(self.key);
        let wanted = gate.take_wanted();
        drop(gate);
        self.pod.wake(wanted);
        released
    }

    /// The same, and leads probes to the application again.
    pub fn release(&self) -> Result<Released, GateError> {
        let released = self.let_in();
        // Last, for the same reason as it came first.
        let steered = self.learn(false);
        released.and_then(|released| steered.map(|()| released))
    }

    /// Looks at the sockets of the pod that are among `held`.
    pub fn sockets(&self, held: &Held, wanted: Wanted) -> Result<Sockets, SocketError> {
        lock(&self.pod.gate).sockets(held, wanted)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut gate = lock(&self.pod.gate);
        let removed = gate.remove(self.key);
        let wanted = gate.take_wanted();
        drop(gate);
        if let Err(error) = removed {
            warn!("take a container out of the gate: {error}");
        }
        self.pod.wake(wanted);
        // Last: from now on another can have the key.
        lock(&self.pod.places).remove(&self.key);
    }
}
