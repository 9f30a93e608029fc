//! When a container may sleep, and if not, why not and when to ask again.
//!
//! [`decide`] is a function of what was observed; times are durations since an epoch of the
//! caller's choice on a monotonic clock, the same for all of them.
//!
//! Invariants:
//!
//! 1. Whatever keeps a container awake has a name; the reasons are checked from what never
//!    changes to what passes, so the one reported is the one that has to go first.
//! 2. A recheck is never zero (no busy loop), and where only time is missing it comes at the
//!    very moment the container could sleep, no earlier.
//! 3. No recheck means: only an event the caller hears of anyway can change the answer.

mod admission;
mod backoff;
mod cpu;
mod pressure;
mod quota;
mod reason;
mod rehearsal;

use std::collections::BTreeSet;
use std::time::Duration;

pub use admission::{Admission, MemoryWait, WakeNeed, admit};
pub use backoff::{BackOff, Retry};
pub use cpu::CpuMeter;
pub use pressure::{Deepen, Deepened, Disk, LightSleep, Room, deepen};
pub use quota::{OverQuota, Quota};
pub use reason::AwakeReason;
pub use rehearsal::rehearsal_due;

use crate::lifecycle::Depth;
use crate::probe::Pending;
use crate::settings::{DeepSleepAfter, Ports, Settings};

/// Bounds of the time between two looks at something that changes without an event.
const POLL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What is known about a container at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observation {
    /// The moment.
    pub now: Duration,
    /// When its process was started or last woke; idle time counts from here at the earliest.
    pub started_at: Duration,
    /// The last sign of use: a packet that is no probe, a detach.
    pub last_activity: Option<Duration>,
    /// Somebody has put it to sleep, and nothing has used it since: its idle time counts as over.
    pub by_hand: bool,
    /// It is the pod's sandbox (pause) container.
    pub sandbox: bool,
    /// It has a terminal.
    pub terminal: bool,
    /// It uses the node's network.
    pub host_network: bool,
    /// It shares its PID namespace with other containers or the node.
    pub shared_pid_namespace: bool,
    /// It is paused.
    pub paused: bool,
    /// The signal that has told it to end, if one has.
    pub terminating: Option<u32>,
    /// Execs in progress.
    pub execs: usize,
    /// Somebody is attached to it.
    pub attached: bool,
    /// Memory of the last restore is not all back.
    pub filling: bool,
    /// The CPU cores it used since the last look, `None` when not known yet. See [`CpuMeter`].
    pub cpu_cores: Option<f64>,
    /// The age of the youngest request that has arrived and that nothing was sent for yet.
    pub unanswered: Option<Duration>,
    /// Its open TCP connections, whoever has opened them.
    pub connections: usize,
    /// The ports its sockets listen on, TCP and UDP.
    pub listening: BTreeSet<u16>,
    /// Why the gate cannot hold packets for it, when it cannot.
    pub gate_unavailable: Option<String>,
    /// Why its memory cannot be moved out, when that is known beforehand.
    pub not_movable: Option<String>,
    /// Why it cannot be checkpointed, when that is known beforehand.
    pub not_checkpointable: Option<String>,
    /// Where its image would be written, when that is known.
    pub disk: Option<Disk>,
    /// What the last sleep that the quota refused says.
    pub over_quota: Option<OverQuota>,
    /// A probe that has to pass before it sleeps, see [`Book::pending`](crate::probe::Book::pending).
    pub probe: Option<Pending>,
    /// What failed checkpoints say, see [`BackOff::retry`].
    pub retry: Option<Retry>,
}

impl Observation {
    /// Since when it has not been used.
    pub fn idle_since(&self) -> Duration {
        self.used_at().unwrap_or(self.started_at)
    }

    /// When it was last used, if it was.
    fn used_at(&self) -> Option<Duration> {
        self.last_activity.filter(|at| *at > self.started_at)
    }

    /// The same container after so long without use that all that passes by itself has passed: what
    /// counts for somebody who asks for sleep.
    pub fn after_a_long_time(self) -> Self {
        Self {
            now: Duration::MAX,
            cpu_cores: Some(0.0),
            ..self
        }
    }
}

/// The answer of [`decide`].
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Nothing keeps it awake; it can sleep this deep at once.
    Sleep(Depth),
    /// Something does.
    StayAwake {
        /// What.
        reason: AwakeReason,
        /// When to ask again, from now on; never zero. `None`: when something happens.
        recheck: Option<Duration>,
    },
}

impl Decision {
    fn until_event(reason: AwakeReason) -> Self {
        let recheck = None;
        Self::StayAwake { reason, recheck }
    }

    fn ask_again(reason: AwakeReason, after: Duration) -> Self {
        let recheck = Some(after);
        Self::StayAwake { reason, recheck }
    }
}

/// Whether the container may sleep now.
pub fn decide(settings: &Settings, seen: &Observation) -> Decision {
    let scaledown = match never(settings, seen) {
        Ok(scaledown) => scaledown,
        Err(reason) => return Decision::until_event(reason),
    };
    let poll = scaledown.clamp(POLL.0, POLL.1);

    // What ends with an event.
    if let Some(signal) = seen.terminating {
        return Decision::until_event(AwakeReason::Terminating { signal });
    }
    let busy = [
        (seen.execs > 0, AwakeReason::Exec),
        (seen.attached, AwakeReason::Attached),
        (seen.paused, AwakeReason::Paused),
        (seen.filling, AwakeReason::Filling),
    ];
    if let Some((_, reason)) = busy.into_iter().find(|(holds, _)| *holds) {
        return Decision::until_event(reason);
    }

    // What may be mended without one.
    if let Some(cause) = seen.gate_unavailable.clone() {
        return Decision::ask_again(AwakeReason::GateUnavailable { cause }, poll);
    }
    let depth = match first_depth(settings, seen) {
        Ok(depth) => depth,
        Err(reason) => return Decision::ask_again(reason, poll),
    };
    if let Some(disk) = seen
        .disk
        .filter(|disk| disk.is_short() && depth != Depth::Cold)
    {
        return Decision::ask_again(AwakeReason::DiskPressure(disk), poll);
    }
    if let Some(over) = seen.over_quota
        && let Some(missing) = time_until(over.until, seen.now)
    {
        return Decision::ask_again(AwakeReason::Quota(over.quota), missing);
    }

    // What only time is missing for.
    let idle_at = seen.idle_since().saturating_add(scaledown);
    if let Some(missing) = time_until(idle_at, seen.now)
        && !seen.by_hand
    {
        let reason = match seen.used_at() {
            Some(_) => AwakeReason::Traffic,
            None => AwakeReason::Starting,
        };
        return Decision::ask_again(reason, missing);
    }
    if let Some(retry) = &seen.retry
        && let Some(missing) = time_until(retry.until, seen.now)
    {
        return Decision::ask_again(AwakeReason::BackOff(retry.clone()), missing);
    }

    // What only another look shows.
    if settings.ports == Ports::Listening && seen.listening.is_empty() {
        return Decision::ask_again(AwakeReason::NoPorts, poll);
    }
    if let Some(limit) = settings.busy_cpu {
        match seen.cpu_cores {
            // After a wake that is not use nothing else is missing.
            None => return Decision::ask_again(AwakeReason::Starting, POLL.0),
            Some(cores) if cores > limit => {
                return Decision::ask_again(AwakeReason::BusyCpu { cores, limit }, poll);
            }
            Some(_) => {}
        }
    }
    if let (Some(age), Some(limit)) = (seen.unanswered, settings.answer_wait)
        && let Some(left) = time_until(limit, age)
    {
        let reason = AwakeReason::Unanswered { age, limit };
        return Decision::ask_again(reason, left.min(poll));
    }
    if seen.connections > 0 && depth == Depth::Cold {
        let open = seen.connections;
        return Decision::ask_again(AwakeReason::Connections { open }, poll);
    }
    if let Some(pending) = seen.probe {
        return Decision::ask_again(AwakeReason::ProbePending(pending), poll);
    }
    if settings.dry_run {
        return Decision::ask_again(AwakeReason::DryRun, poll);
    }
    Decision::Sleep(depth)
}

/// How deep it sleeps at first: light, which wakes faster and works for more programs, unless the
/// settings want a checkpoint at once or its memory cannot be moved out. Where nothing is to be kept
/// of its processes, cold.
fn first_depth(settings: &Settings, seen: &Observation) -> Result<Depth, AwakeReason> {
    if settings.disable_checkpointing {
        return Ok(Depth::Cold);
    }
    let wants_deep = settings.deep_sleep_after == DeepSleepAfter::Immediately;
    match &seen.not_movable {
        None if !wants_deep => return Ok(Depth::Light),
        Some(cause) if settings.deep_sleep_after == DeepSleepAfter::Never => {
            let cause = cause.clone();
            return Err(AwakeReason::NotMovable { cause });
        }
        _ => {}
    }
    match seen.not_checkpointable.clone() {
        None => Ok(Depth::Deep),
        Some(cause) => Err(AwakeReason::NotCheckpointable { cause }),
    }
}

/// The scale-down time, or why this container never sleeps.
fn never(settings: &Settings, seen: &Observation) -> Result<Duration, AwakeReason> {
    let reasons = [
        (seen.sandbox, AwakeReason::Sandbox),
        (!settings.selected, AwakeReason::NotSelected),
        (seen.host_network, AwakeReason::HostNetwork),
        (seen.shared_pid_namespace, AwakeReason::SharedPidNamespace),
        (seen.terminal, AwakeReason::Terminal),
    ];
    match reasons.into_iter().find(|(holds, _)| *holds) {
        Some((_, reason)) => Err(reason),
        None => settings.scaledown.ok_or(AwakeReason::Disabled),
    }
}

/// The time from `now` to `moment`, `None` when it has come.
fn time_until(moment: Duration, now: Duration) -> Option<Duration> {
    moment.checked_sub(now).filter(|missing| !missing.is_zero())
}

#[cfg(test)]
mod tests;
