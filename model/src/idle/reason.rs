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
            Self::ProbePending(_) => "probe-pending",
            Self::DryRun => "dry-run",
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
            Self::ProbePending(pending) => pending.fmt(f),
            Self::DryRun => f.write_str("it would sleep now, but this is a dry run"),
        }
    }
}
