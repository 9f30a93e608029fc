//! What shims say, as records.

use jiff::Timestamp;

use super::{
    AwakeReason, Counters, Fill, LastProbe, LastSleep, LastWake, MemoryWait, Outcome, Packets, Pod,
    Probes, Record, Rehearsal,
};
use crate::client::{Asked, Found};
use crate::shim::v1 as proto;

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
            since: moment(container.since_unix_ms),
            awake_reason: container
                .awake_reason
                .into_option()
                .map(|reason| AwakeReason {
                    name: reason.name,
                    detail: reason.detail,
                    since: moment(reason.since_unix_ms),
                }),
            memory_wait: container.memory_wait.into_option().map(|wait| MemoryWait {
                since: moment(wait.since_unix_ms),
                detail: wait.detail,
            }),
            ports: container.ports,
            memory_freed_bytes: container.memory_freed_bytes,
            image_bytes: container.image_bytes,
            last_sleep: container.last_sleep.into_option().map(last_sleep),
            last_wake: container.last_wake.into_option().map(last_wake),
            rehearsal: container.rehearsal.into_option().map(|last| Rehearsal {
                at: moment(last.at_unix_ms),
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
        at: moment(last.at_unix_ms),
        depth: last.depth,
        took_seconds: seconds(last.took_us),
        frozen_seconds: seconds(last.frozen_us),
        memory_bytes: last.memory_bytes,
        image_bytes: last.image_bytes,
        working_set_bytes: Some(last.working_set_bytes).filter(|bytes| *bytes != 0),
        left_bytes: Some(last.left_bytes).filter(|bytes| *bytes != 0),
        unread_bytes: Some(last.unread_bytes).filter(|bytes| *bytes != 0),
        deepened: some(last.deepened),
        compression: some(last.compression),
    }
}

fn last_wake(last: proto::LastWake) -> LastWake {
    LastWake {
        at: moment(last.at_unix_ms),
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
        at: moment(last.at_unix_ms),
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

/// A moment in UTC, RFC 3339 with milliseconds. Moments that no calendar has are written as numbers.
pub fn moment(unix_ms: i64) -> String {
    Timestamp::from_millisecond(unix_ms)
        .map_or_else(|_| unix_ms.to_string(), |moment| format!("{moment:.3}"))
}

impl Outcome {
    /// What became of it.
    pub fn new(asked: &Asked) -> Self {
        Self {
            container: Record::new(&asked.found),
            changed: asked.changed,
            error: asked.error.as_ref().map(ToString::to_string),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn moments_are_in_utc_with_milliseconds() {
        assert_eq!(moment(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(moment(i64::MAX), i64::MAX.to_string());
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let container = proto::Container {
            id: "web".into(),
            state: "running".into(),
            awake_reason: Some(proto::AwakeReason {
                name: "traffic".into(),
                ..Default::default()
            })
            .into(),
            last_wake: Some(proto::LastWake {
                took_us: 5_300,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let record = Record::new(&Found::new(Path::new("/run/web.sock"), container));
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}
