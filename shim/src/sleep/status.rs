//! What a container's sleeping looks like from outside, and who can ask about it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use podmotion_criu_driver::Written;
use podmotion_model::{
    idle::{self, AwakeReason, Deepened},
    lifecycle::{Depth, State, WakeCause},
};
use podmotion_pager::FillStats;
use tokio::sync::{mpsc, watch};

use super::{Notice, tally::Tallies};
use crate::gate;

/// One sleep that succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastSleep {
    /// When the memory was free.
    pub at: SystemTime,
    /// How deep it is.
    pub depth: Depth,
    /// Why it became deep, where it was light before.
    pub deepened: Option<Deepened>,
    /// From the decision until then.
    pub took: Duration,
    /// Of it, the time in which the container stood still.
    pub frozen: Duration,
    /// Memory that was freed, in bytes.
    pub memory_bytes: u64,
    /// Size of the images in bytes.
    pub image_bytes: u64,
    /// What goes in before it runs again, in bytes; none in deep sleep.
    pub working_set_bytes: u64,
    /// What was left in memory because wakes need it, in bytes; none in deep sleep.
    pub left_bytes: u64,
    /// What was compared with the image before it was stopped, in bytes; none in deep sleep.
    pub unread_bytes: u64,
}

/// A wake that waits for the node to have memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryWait {
    /// Since when.
    pub since: SystemTime,
    /// For what, as it was then.
    pub what: idle::MemoryWait,
}

/// A checkpoint that was only rehearsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehearsal {
    /// When it came to its end.
    pub at: SystemTime,
    /// What was written, and how long the container stood still for it; or why there can be none.
    pub result: Result<(Written, Duration), String>,
}

/// One wake that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastWake {
    /// When the processes ran.
    pub at: SystemTime,
    /// From how deep a sleep.
    pub depth: Depth,
    /// What for.
    pub cause: WakeCause,
    /// From the request until then.
    pub took: Duration,
    /// Of it, the time in which it waited for the node to have memory.
    pub memory_wait: Duration,
    /// Of it, the time for memory that the last wakes had needed; none after deep sleep.
    pub prefetch: Duration,
    /// Of it, the time for thawing; none after deep sleep.
    pub thaw: Duration,
    /// How long the first held packet had waited when it was given back.
    pub first_packet_held: Option<Duration>,
    /// Packets given back.
    pub packets: u64,
    /// Memory was still on its way.
    pub lazy: bool,
    /// How all of it came back, once it has, after light sleep.
    pub fill: Option<Arc<FillStats>>,
}

/// Counts since the container was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Checkpoints that put it to sleep.
    pub sleeps: u64,
    /// Checkpoints given up because it was wanted.
    pub sleeps_aborted: u64,
    /// Checkpoints that failed.
    pub sleeps_failed: u64,
    /// Restores that woke it.
    pub wakes: u64,
    /// Restores that failed.
    pub wakes_failed: u64,
    /// Starts without its state, after it could not be restored.
    pub cold_starts: u64,
}

/// What became of the probes that came to the responder, since the container was created.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Answered in the container's place.
    pub answered: u64,
    /// Passed on to the application.
    pub proxied: u64,
    /// The last one of each port that says something about the application.
    pub last: BTreeMap<u16, LastProbe>,
}

/// A probe that the application has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastProbe {
    /// When.
    pub at: SystemTime,
    /// `tcp`, `http`, `https`, `grpc` or `other`.
    pub kind: &'static str,
    /// What it asked for.
    pub subject: String,
    /// It passed.
    pub passed: bool,
    /// The answer, or why there was none.
    pub said: String,
}

/// A container's sleeping, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The state.
    pub state: State,
    /// Since when.
    pub since: SystemTime,
    /// Why it is awake, where that is known.
    pub awake: Option<AwakeReason>,
    /// What its wake waits for.
    pub memory_wait: Option<MemoryWait>,
    /// Since when that is the reason.
    pub awake_since: SystemTime,
    /// Ports that count and wake.
    pub ports: Vec<u16>,
    /// The last sleep.
    pub last_sleep: Option<LastSleep>,
    /// What became of the image of a last sleep that was light: `lz4`, or `none: ` and why. Empty
    /// before anything has.
    pub compression: String,
    /// The last wake.
    pub last_wake: Option<LastWake>,
    /// The last rehearsal of a dry run.
    pub rehearsal: Option<Rehearsal>,
    /// Counts.
    pub counters: Counters,
    /// The same by depth, with times.
    pub tallies: Tallies,
    /// What the gate's programs had counted in the pod when the container last woke.
    pub packets: gate::Counters,
    /// The kubelet's probes.
    pub probes: Probes,
    /// The last failure of a sleep or a wake.
    pub last_error: Option<String>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            state: State::Created,
            since: SystemTime::now(),
            awake: None,
            memory_wait: None,
            awake_since: SystemTime::now(),
            ports: Vec::new(),
            last_sleep: None,
            compression: String::new(),
            last_wake: None,
            rehearsal: None,
            counters: Counters::default(),
            tallies: Tallies::default(),
            packets: gate::Counters::default(),
            probes: Probes::default(),
            last_error: None,
        }
    }
}

/// Who a container is, in its pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// containerd's id.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Name in the pod; the id where there is no pod.
    pub name: String,
    /// The pod's name, namespace and uid; empty where there is none.
    pub pod_name: String,
    /// See `pod_name`.
    pub pod_namespace: String,
    /// See `pod_name`.
    pub pod_uid: String,
    /// Image reference, where it is known.
    pub image: String,
}

/// How to ask a container about its sleeping, and for a change of it.
#[derive(Clone)]
pub struct Handle {
    /// Who it is.
    pub identity: Arc<Identity>,
    /// What it does.
    pub status: watch::Receiver<Status>,
    /// The way to its driver.
    pub driver: mpsc::UnboundedSender<Notice>,
}

/// All containers of this shim.
#[derive(Clone)]
pub struct Registry {
    containers: Arc<Mutex<BTreeMap<String, Handle>>>,
    revision: watch::Sender<u64>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            containers: Arc::default(),
            revision: watch::Sender::new(1),
        }
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a container.
    pub fn insert(&self, handle: Handle) {
        self.lock().insert(handle.identity.id.clone(), handle);
        self.changed();
    }

    /// Takes a container out.
    pub fn remove(&self, id: &str) {
        self.lock().remove(id);
        self.changed();
    }

    /// One container.
    pub fn get(&self, id: &str) -> Option<Handle> {
        self.lock().get(id).cloned()
    }

    /// All of them, by id.
    pub fn all(&self) -> Vec<Handle> {
        self.lock().values().cloned().collect()
    }

    /// Says that the status of one of them is another now.
    pub fn changed(&self) {
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// A number that grows with every change, to wait on.
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}
