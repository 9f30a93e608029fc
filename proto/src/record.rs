//! A container as JSON. Names and units are part of the interface: what is here stays.
//!
//! `podmotion ... --output json` prints it, a node's manager serves it, `kubectl podmotion` reads it.

mod convert;

use serde::{Deserialize, Serialize};

pub use self::convert::moment;

/// One container.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// containerd's id.
    pub id: String,
    /// containerd's namespace.
    pub containerd_namespace: String,
    /// Name in the pod; the id where there is no pod.
    pub name: String,
    /// Its pod.
    pub pod: Option<Pod>,
    /// The image's name.
    pub image: String,
    /// It is the pod's own container.
    pub sandbox: bool,
    /// The shim's word for its state.
    pub state: String,
    /// `light` or `deep`, where it sleeps.
    pub depth: Option<String>,
    /// When the state began. All moments are in RFC 3339.
    pub since: String,
    /// Why it is awake.
    pub awake_reason: Option<AwakeReason>,
    /// What its wake waits for.
    pub memory_wait: Option<MemoryWait>,
    /// Ports that count and wake.
    pub ports: Vec<u32>,
    /// Memory that is freed at this moment.
    pub memory_freed_bytes: u64,
    /// Size of the images on disk at this moment.
    pub image_bytes: u64,
    /// Its last sleep.
    pub last_sleep: Option<LastSleep>,
    /// Its last wake.
    pub last_wake: Option<LastWake>,
    /// Of a dry run.
    pub rehearsal: Option<Rehearsal>,
    /// The last failure, unless a sleep has succeeded since.
    pub last_error: Option<String>,
    /// How often what has happened.
    pub counters: Counters,
    /// What the gate did.
    pub packets: Packets,
    /// What became of probes.
    pub probes: Probes,
    /// The socket of its shim.
    pub socket: String,
}

/// The pod of a container.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Pod {
    /// Its namespace in Kubernetes.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its unique id.
    pub uid: String,
}

/// Why a container is awake.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct AwakeReason {
    /// The stable name.
    pub name: String,
    /// For people.
    pub detail: String,
    /// Since when it is the reason.
    pub since: String,
}

/// A wake that waits for the node to have memory.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct MemoryWait {
    /// Since when.
    pub since: String,
    /// What the node is short of.
    pub detail: String,
}

/// A checkpoint that was made to see whether one is possible.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rehearsal {
    /// When it came to its end.
    pub at: String,
    /// How long the container stood still for it.
    pub took_seconds: f64,
    /// Memory that would have been freed.
    pub memory_bytes: u64,
    /// Size of its images.
    pub image_bytes: u64,
    /// Why no checkpoint is possible; the figures are 0 then.
    pub error: Option<String>,
}

/// The last sleep of a container.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastSleep {
    /// When it slept.
    pub at: String,
    /// `light` or `deep`.
    pub depth: String,
    /// From the decision until the memory was free.
    pub took_seconds: f64,
    /// Of it, the time in which the container stood still.
    pub frozen_seconds: f64,
    /// Memory that was freed.
    pub memory_bytes: u64,
    /// Size of the images.
    pub image_bytes: u64,
    /// What the next wake fills first. Not known where it is missing.
    pub working_set_bytes: Option<u64>,
    /// What the last wakes have needed and was left in memory. Nothing where it is missing.
    pub left_bytes: Option<u64>,
    /// What was known to be as in the image already and was not read. Nothing where it is missing.
    pub unread_bytes: Option<u64>,
    /// Why light sleep became deep.
    pub deepened: Option<String>,
    /// What the image is compressed with, or `none: ` and why it cannot be. Not yet where it is missing.
    pub compression: Option<String>,
}

/// The last wake of a container.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LastWake {
    /// When it ran.
    pub at: String,
    /// What it woke from.
    pub depth: String,
    /// What woke it.
    pub cause: String,
    /// From the request until the processes ran.
    pub took_seconds: f64,
    /// Of it, the time for memory that the last wakes had needed.
    pub prefetch_seconds: f64,
    /// Of it, the time for thawing the processes.
    pub thaw_seconds: f64,
    /// It did not wait for memory where it is missing.
    pub memory_wait_seconds: Option<f64>,
    /// None was held where it is missing.
    pub first_packet_held_seconds: Option<f64>,
    /// Packets given back.
    pub packets: u64,
    /// It ran before all of its memory was back.
    pub lazy: bool,
    /// How its memory came back after light sleep.
    pub fill: Option<Fill>,
}

/// How memory came back.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fill {
    /// Filled before it ran.
    pub prefetch_bytes: u64,
    /// Pages that it asked for while it ran.
    pub faults: u64,
    /// Time in which those were being answered, added up.
    pub faults_seconds: f64,
    /// Filled without being asked for.
    pub background_bytes: u64,
    /// From the first of those bytes to the last.
    pub took_seconds: f64,
}

/// How often what has happened.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// It slept.
    pub sleeps: u64,
    /// It was to sleep and something came in between.
    pub sleeps_aborted: u64,
    /// It could not sleep.
    pub sleeps_failed: u64,
    /// It woke.
    pub wakes: u64,
    /// It could not be woken.
    pub wakes_failed: u64,
    /// It was started anew, since it could not be woken.
    pub cold_starts: u64,
}

/// What the gate did in the pod's network until the container last woke.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Packets {
    /// Kept for a sleeping container.
    pub held: u64,
    /// Acknowledgements that need no answer.
    pub dropped: u64,
    /// Keepalives, answered in its place.
    pub answered: u64,
    /// Held and given back.
    pub returned: u64,
}

/// What became of the kubelet's probes while it slept.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Probes {
    /// Answered in its place.
    pub answered: u64,
    /// Passed on to the application.
    pub proxied: u64,
    /// The last one that the application has answered, of each port.
    pub last: Vec<LastProbe>,
}

/// A probe that the application has answered.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct LastProbe {
    /// The port.
    pub port: u32,
    /// When.
    pub at: String,
    /// `tcp`, `http`, `https`, `grpc` or `other`.
    pub kind: String,
    /// What it asked for.
    pub subject: String,
    /// Whether it passed.
    pub passed: bool,
    /// The answer, or why there was none.
    pub said: String,
}

/// What became of a request for sleep or for a wake.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The container afterwards.
    pub container: Record,
    /// It was not so before.
    pub changed: bool,
    /// Why it is not so now.
    pub error: Option<String>,
}
