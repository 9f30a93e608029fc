//! `docs/why-awake.md`.

use std::time::Duration;

use super::cell;
use crate::idle::{self, AwakeReason, Disk, Retry, Room};
use crate::probe::Pending;
use crate::value::{ByteSize, Share};

const HEAD: &str = "# Why a container stays awake

`podmotion ps` and `podmotion inspect` name one reason for each container that is awake: the one that has to go first. This page
is generated from `AwakeReason` (`model/src/idle/reason.rs`).

| reason | for example | what to do |
|---|---|---|
";

/// The text of the page.
pub fn page() -> String {
    let lines = reasons().map(|reason| {
        let (name, advice) = (reason.as_str(), cell(reason.advice()));
        format!("| `{name}` | {} | {advice} |\n", cell(&reason.to_string()))
    });
    HEAD.to_owned() + &lines.collect::<String>()
}

/// What somebody can do about the reason of this name; nothing where there is no such reason.
pub fn advice(name: &str) -> Option<&'static str> {
    let reason = reasons().find(|reason| reason.as_str() == name);
    reason.map(|reason| reason.advice())
}

/// An example of each reason.
fn reasons() -> impl Iterator<Item = AwakeReason> {
    std::iter::successors(after(None), |reason| after(Some(reason)))
}

/// An example of the reason after `reason`, the first after none. A reason that is left out here does
/// not compile.
fn after(reason: Option<&AwakeReason>) -> Option<AwakeReason> {
    use AwakeReason::*;
    let minute = Duration::from_secs(60);
    let cause = |text: &str| text.to_owned();
    let Some(reason) = reason else {
        return Some(Sandbox);
    };
    Some(match reason {
        Sandbox => NotSelected,
        NotSelected => Disabled,
        Disabled => HostNetwork,
        HostNetwork => SharedPidNamespace,
        SharedPidNamespace => Terminal,
        Terminal => Terminating { signal: 15 },
        Terminating { .. } => Exec,
        Exec => Attached,
        Attached => Paused,
        Paused => Filling,
        Filling => GateUnavailable {
            cause: cause("open /sys/fs/bpf/podmotion/v1/gate_ingress: No such file or directory"),
        },
        GateUnavailable { .. } => NotMovable {
            cause: cause("process 4711 has an open [io_uring]"),
        },
        NotMovable { .. } => NotCheckpointable {
            cause: cause("it listens on 0.0.0.0:80 with MPTCP, which CRIU cannot checkpoint"),
        },
        NotCheckpointable { .. } => DiskPressure(Disk {
            room: Room {
                free: 2 << 30,
                total: 20 << 30,
            },
            needed: 300 << 20,
            least: Share::Percent(10),
        }),
        DiskPressure(_) => Quota(idle::Quota {
            used: 900 << 20,
            needed: 300 << 20,
            share: Share::Bytes(ByteSize::mebibytes(1024)),
            limit: 1 << 30,
        }),
        Quota(_) => Starting,
        Starting => Traffic,
        Traffic => BackOff(Retry {
            until: minute,
            failures: 2,
            delay: minute,
            cause: cause("Error (criu/files-ext.c:98): Can't dump file 6 of that type"),
        }),
        BackOff(_) => NoPorts,
        NoPorts => BusyCpu {
            cores: 0.8,
            limit: 0.5,
        },
        BusyCpu { .. } => Unanswered {
            age: minute / 2,
            limit: 2 * minute,
        },
        Unanswered { .. } => Connections { open: 3 },
        Connections { .. } => ProbePending(Pending {
            port: 8080,
            failed: true,
        }),
        ProbePending(_) => DryRun,
        DryRun => return None,
    })
}
