//! The reasons for which a container stays awake.

use std::fmt;
use std::time::Duration;

use super::{Disk, Quota, Retry};
use crate::duration;
use crate::probe::Pending;

/// Why a container stays awake.
#[derive(Debug, Clone, PartialEq)]
pub enum AwakeReason {
    /// It is the pod's sandbox container.
    Sandbox,
    /// The pod's annotation names other containers.
    NotSelected,
    /// Its scale-down time is 0.
    Disabled,
    /// It uses the node's network, where nothing can be held for it.
    HostNetwork,
    /// It shares its PID namespace, so it cannot be checkpointed alone.
    SharedPidNamespace,
    /// It has a terminal.
    Terminal,
    /// It was told to end, and has not yet: asleep it would not.
    Terminating {
        /// The signal that told it.
        signal: u32,
    },
    /// An exec is in progress.
    Exec,
    /// Somebody is attached to it.
    Attached,
    /// It is paused.
    Paused,
    /// Memory of the last restore is not all back.
    Filling,
    /// The gate cannot hold packets for it.
    GateUnavailable {
        /// Why.
        cause: String,
    },
    /// Its memory cannot be moved out, and it is not to be checkpointed.
    NotMovable {
        /// Why.
        cause: String,
    },
    /// It cannot be checkpointed.
    NotCheckpointable {
        /// Why.
        cause: String,
    },
    /// Its image would not leave enough room on the disk.
    DiskPressure(Disk),
    /// With its image all images of the node would take more than they may.
    Quota(Quota),
    /// It was started or woken only just now.
    Starting,
    /// It was used only just now.
    Traffic,
    /// Its last checkpoint failed, and the next try is not due.
    BackOff(Retry),
    /// It has no port on which a packet could wake it.
    NoPorts,
    /// It computes.
    BusyCpu {
        /// Cores in use.
        cores: f64,
        /// The limit it is above.
        limit: f64,
    },
    /// It has not answered a request yet.
    Unanswered {
        /// When the youngest of them came in, counted from now.
        age: Duration,
        /// How long it is waited for.
        limit: Duration,
    },
    /// It is to be stopped instead of being checkpointed, and that would end its connections.
    Connections {
        /// How many are open.
        open: usize,
    },
    /// A probe has not passed yet, or failed: asleep it could not be answered with the truth.
    ProbePending(Pending),
    /// It would sleep now, but is only watched.
    DryRun,
}

impl AwakeReason {
    /// The stable name, for status and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::NotSelected => "not-selected",
            Self::Disabled => "disabled",
            Self::HostNetwork => "host-network",
            Self::SharedPidNamespace => "shared-pid-namespace",
            Self::Terminal => "terminal",
            Self::Terminating { .. } => "terminating",
            Self::Exec => "exec",
            Self::Attached => "attached",
            Self::Paused => "paused",
            Self::Filling => "filling",
            Self::GateUnavailable { .. } => "gate-unavailable",
            Self::NotMovable { .. } => "not-movable",
            Self::NotCheckpointable { .. } => "not-checkpointable",
            Self::DiskPressure(_) => "disk-pressure",
            Self::Quota(_) => "quota",
            Self::Starting => "starting",
            Self::Traffic => "traffic",
            Self::BackOff(_) => "back-off",
            Self::NoPorts => "no-ports",
            Self::BusyCpu { .. } => "busy-cpu",
            Self::Unanswered { .. } => "unanswered",
            Self::Connections { .. } => "connections",
            Self::ProbePending(_) => "probe-pending",
            Self::DryRun => "dry-run",
        }
    }
}

impl AwakeReason {
    /// What somebody can do who wants the container to sleep.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Sandbox => "Nothing: it holds the pod's namespaces and takes next to no memory.",
            Self::NotSelected => {
                "Add its name to `komodor.com/podmotion-container-names`, or leave the annotation out."
            }
            Self::Disabled => {
                "Set `komodor.com/podmotion-scaledown-duration`, or `sleep.scaledown_duration` of the \
                 node, to more than 0."
            }
            Self::HostNetwork => "Run the pod without `hostNetwork`.",
            Self::SharedPidNamespace => {
                "Run the pod without `hostPID` and `shareProcessNamespace`. An ephemeral container \
                 that targets this one shares its namespace until it has ended."
            }
            Self::Terminal => "Run it without `tty`.",
            Self::Terminating { .. } => {
                "Wait for its end: it has its grace period for itself. One that goes on after such a \
                 signal sleeps again when it has been restarted."
            }
            Self::Exec => "End the exec, such as a shell that was left open.",
            Self::Attached => "Detach.",
            Self::Paused => "Resume it.",
            Self::Filling => "Wait: it takes seconds.",
            Self::GateUnavailable { .. } => {
                "Run `podmotion check` on the node where BPF programs are not pinned or the kernel \
                 refuses them. Name the ports that matter with `komodor.com/podmotion-ports-map` where \
                 it listens on too many. A look that failed is made again."
            }
            Self::NotMovable { .. } => {
                "See what light sleep does not do in `docs/sleep-depths.md`, or allow deep sleep: \
                 `komodor.com/podmotion-deep-sleep-after` other than `never`."
            }
            Self::NotCheckpointable { .. } => {
                "Where CRIU does not work, `podmotion check` says why. Otherwise the cause names what \
                 it cannot checkpoint; light sleep may do: `komodor.com/podmotion-deep-sleep-after` \
                 other than `0`."
            }
            Self::DiskPressure(_) => {
                "Make room on the file system of `checkpoint.directory`, put it on a larger one, or \
                 lower `pressure.min_disk`."
            }
            Self::Quota(_) => {
                "Raise `checkpoint.quota`. `podmotion ps` shows which images are large; `podmotion gc` \
                 removes those without an owner."
            }
            Self::Starting => "Wait for `komodor.com/podmotion-scaledown-duration`.",
            Self::Traffic => {
                "Wait for `komodor.com/podmotion-scaledown-duration`. If it never sleeps, something \
                 calls it: health checks and scrapers from outside count as use unless \
                 `traffic.ignore_networks` or `traffic.ignore_user_agents` names them."
            }
            Self::BackOff(_) => {
                "See to the cause, which names CRIU's own line. `podmotion sleep` tries at once."
            }
            Self::NoPorts => {
                "Name the ports that wake it in `komodor.com/podmotion-ports-map`. What listens on \
                 nothing could not be woken."
            }
            Self::BusyCpu { .. } => {
                "Raise `komodor.com/podmotion-busy-cpu`, if what it computes may stand still."
            }
            Self::Unanswered { .. } => "Wait, or shorten `komodor.com/podmotion-answer-wait`.",
            Self::Connections { .. } => {
                "Have whoever is connected close idle connections, or remove \
                 `komodor.com/podmotion-disable-checkpointing`: a checkpoint keeps connections."
            }
            Self::ProbePending(_) => {
                "See to the probe that fails, as `kubectl describe pod` shows it. One that only has not \
                 come yet comes within its period."
            }
            Self::DryRun => {
                "Remove `komodor.com/podmotion-dry-run`, or `sleep.dry_run` of the node. `podmotion \
                 inspect` says whether a checkpoint is possible."
            }
        }
    }
}

impl fmt::Display for AwakeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox => f.write_str("it is the pod's sandbox container"),
            Self::NotSelected => f.write_str("the pod's annotation names other containers"),
            Self::Disabled => f.write_str("its scale-down time is 0"),
            Self::HostNetwork => f.write_str("it uses the node's network"),
            Self::SharedPidNamespace => f.write_str("it shares its PID namespace"),
            Self::Terminal => f.write_str("it has a terminal"),
            Self::Terminating { signal } => write!(f, "signal {signal} has told it to end"),
            Self::Exec => f.write_str("an exec is in progress"),
            Self::Attached => f.write_str("somebody is attached to it"),
            Self::Paused => f.write_str("it is paused"),
            Self::Filling => f.write_str("memory of its last restore is not all back"),
            Self::GateUnavailable { cause } => {
                write!(f, "packets cannot be held for it: {cause}")
            }
            Self::NotMovable { cause } => write!(f, "its memory cannot be moved out: {cause}"),
            Self::NotCheckpointable { cause } => write!(f, "it cannot be checkpointed: {cause}"),
            Self::DiskPressure(disk) => disk.fmt(f),
            Self::Quota(quota) => quota.fmt(f),
            Self::Starting => f.write_str("it has started or woken only just now"),
            Self::Traffic => f.write_str("it was used only just now"),
            Self::BackOff(retry) => write!(
                f,
                "checkpoints in a row that failed: {}, the last because {}; the next try comes \
                 {} after it",
                retry.failures,
                retry.cause,
                duration::format(retry.delay),
            ),
            Self::NoPorts => f.write_str("it has no port on which a packet could wake it"),
            Self::BusyCpu { cores, limit } => {
                write!(f, "it uses {cores:.2} CPU cores, more than {limit}")
            }
            Self::Unanswered { age, limit } => write!(
                f,
                "a request of {} ago has no answer yet, waited for until it is {} old",
                duration::format(*age),
                duration::format(*limit),
            ),
            Self::Connections { open } => write!(
                f,
                "it has {open} open connections, which would end with its processes"
            ),
            Self::ProbePending(pending) => pending.fmt(f),
            Self::DryRun => f.write_str("it would sleep now, but this is a dry run"),
        }
    }
}
