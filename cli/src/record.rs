//! A container as JSON. Names and units are part of the interface: what is here stays.

use podmotion_proto::shim::v1 as proto;
use serde::Serialize;

use crate::human;
use crate::shims::Found;

/// One container.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    id: String,
    containerd_namespace: String,
    name: String,
    pod: Option<Pod>,
    image: String,
    sandbox: bool,
    state: String,
    depth: Option<String>,
    since: String,
    awake_reason: Option<AwakeReason>,
    /// What its wake waits for.
    memory_wait: Option<MemoryWait>,
    ports: Vec<u32>,
    memory_freed_bytes: u64,
    image_bytes: u64,
    last_sleep: Option<LastSleep>,
    last_wake: Option<LastWake>,
    /// Of a dry run.
    rehearsal: Option<Rehearsal>,
    last_error: Option<String>,
    counters: Counters,
    packets: Packets,
    probes: Probes,
    socket: String,
}

#[derive(Debug, Serialize)]
struct Pod {
    namespace: String,
    name: String,
    uid: String,
}

#[derive(Debug, Serialize)]
struct AwakeReason {
    name: String,
    detail: String,
    since: String,
}

#[derive(Debug, Serialize)]
struct MemoryWait {
    since: String,
    detail: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rehearsal {
    at: String,
    took_seconds: f64,
    memory_bytes: u64,
    image_bytes: u64,
    /// Why no checkpoint is possible; the figures are 0 then.
    error: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LastSleep {
    at: String,
    depth: String,
    took_seconds: f64,
    frozen_seconds: f64,
    memory_bytes: u64,
    image_bytes: u64,
    /// Not known where it is missing.
    working_set_bytes: Option<u64>,
    /// Why light sleep became deep.
    deepened: Option<String>,
    /// What the image is compressed with, or `none: ` and why it cannot be. Not yet where it is missing.
    compression: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LastWake {
    at: String,
    depth: String,
    cause: String,
    took_seconds: f64,
    prefetch_seconds: f64,
    thaw_seconds: f64,
    /// It did not wait for memory where it is missing.
    memory_wait_seconds: Option<f64>,
    /// None was held where it is missing.
    first_packet_held_seconds: Option<f64>,
    packets: u64,
    lazy: bool,
    fill: Option<Fill>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Fill {
    prefetch_bytes: u64,
    faults: u64,
    faults_seconds: f64,
    background_bytes: u64,
    took_seconds: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Counters {
    sleeps: u64,
    sleeps_aborted: u64,
    sleeps_failed: u64,
    wakes: u64,
    wakes_failed: u64,
    cold_starts: u64,
}

#[derive(Debug, Serialize)]
struct Packets {
    held: u64,
    dropped: u64,
    answered: u64,
    returned: u64,
}

#[derive(Debug, Serialize)]
struct Probes {
    answered: u64,
    proxied: u64,
    last: Vec<LastProbe>,
}

#[derive(Debug, Serialize)]
struct LastProbe {
    port: u32,
    at: String,
    kind: String,
    subject: String,
    passed: bool,
    said: String,
}

impl Record {
    /// What a shim says of a container.
    pub fn new(found: &Found) -> Self {
        let container = found.container.clone();
        Self {
            id: container.id,
            containerd_namespace: container.namespace,
            name: container.name,
            pod: some(container.pod_name).map(|name| Pod {
                namespace: container.pod_namespace,
                name,
                uid: container.pod_uid,
            }),
            image: container.image,
            sandbox: found.sandbox,
            state: container.state,
            depth: some(container.depth),
            since: human::moment(container.since_unix_ms),
            awake_reason: container
                .awake_reason
                .into_option()
                .map(|reason| AwakeReason {
                    name: reason.name,
                    detail: reason.detail,
                    since: human::moment(reason.since_unix_ms),
                }),
            memory_wait: container.memory_wait.into_option().map(|wait| MemoryWait {
                since: human::moment(wait.since_unix_ms),
                detail: wait.detail,
            }),
            ports: container.ports,
            memory_freed_bytes: container.memory_freed_bytes,
            image_bytes: container.image_bytes,
            last_sleep: container.last_sleep.into_option().map(last_sleep),
            last_wake: container.last_wake.into_option().map(last_wake),
            rehearsal: container.rehearsal.into_option().map(|last| Rehearsal {
                at: human::moment(last.at_unix_ms),
                took_seconds: seconds(last.took_us),
                memory_bytes: last.memory_bytes,
                image_bytes: last.image_bytes,
                error: some(last.error),
            }),
            last_error: some(container.last_error),
            counters: counters(&container.counters),
            packets: packets(&container.packets),
            probes: probes(container.probes.unwrap_or_default()),
            socket: found.socket.display().to_string(),
        }
    }
}

fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

fn last_sleep(last: proto::LastSleep) -> LastSleep {
    LastSleep {
        at: human::moment(last.at_unix_ms),
        depth: last.depth,
        took_seconds: seconds(last.took_us),
        frozen_seconds: seconds(last.frozen_us),
        memory_bytes: last.memory_bytes,
        image_bytes: last.image_bytes,
        working_set_bytes: Some(last.working_set_bytes).filter(|bytes| *bytes != 0),
        deepened: some(last.deepened),
        compression: some(last.compression),
    }
}

fn last_wake(last: proto::LastWake) -> LastWake {
    LastWake {
        at: human::moment(last.at_unix_ms),
        depth: last.depth,
        cause: last.cause,
        took_seconds: seconds(last.took_us),
        prefetch_seconds: seconds(last.prefetch_us),
        thaw_seconds: seconds(last.thaw_us),
        memory_wait_seconds: Some(last.memory_wait_us)
            .filter(|waited| *waited != 0)
            .map(seconds),
        first_packet_held_seconds: Some(last.first_packet_held_us)
            .filter(|held| *held != 0)
            .map(seconds),
        packets: last.packets,
        lazy: last.lazy,
        fill: last.fill.into_option().map(|fill| Fill {
            prefetch_bytes: fill.prefetch_bytes,
            faults: fill.faults,
            faults_seconds: seconds(fill.faults_us),
            background_bytes: fill.background_bytes,
            took_seconds: seconds(fill.took_us),
        }),
    }
}

fn counters(counters: &proto::Counters) -> Counters {
    Counters {
        sleeps: counters.sleeps,
        sleeps_aborted: counters.sleeps_aborted,
        sleeps_failed: counters.sleeps_failed,
        wakes: counters.wakes,
        wakes_failed: counters.wakes_failed,
        cold_starts: counters.cold_starts,
    }
}

fn packets(packets: &proto::Packets) -> Packets {
    Packets {
        held: packets.held,
        dropped: packets.dropped,
        answered: packets.answered,
        returned: packets.returned,
    }
}

fn probes(probes: proto::Probes) -> Probes {
    let last = probes.last.into_iter().map(|last| LastProbe {
        port: last.port,
        at: human::moment(last.at_unix_ms),
        kind: last.kind,
        subject: last.subject,
        passed: last.passed,
        said: last.said,
    });
    Probes {
        answered: probes.answered,
        proxied: probes.proxied,
        last: last.collect(),
    }
}
