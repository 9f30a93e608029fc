//! What the node has left, and what that means for sleep.
//!
//! The two kinds of pressure ask for different things. Memory: deep sleep frees what light sleep
//! keeps, so it comes sooner. Disk: a checkpoint takes as much as an image of memory, and for a
//! moment both are there, so nothing that writes is begun.

use std::fmt;
use std::time::Duration;

use super::{POLL, Retry, time_until};
use crate::settings::{DeepSleepAfter, Settings};
use crate::value::{Setting, Share};

/// How much there is of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that are left.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

impl Room {
    /// Whether less than `least` is left once `needed` bytes are taken.
    pub fn is_short(self, least: Share, needed: u64) -> bool {
        self.free.saturating_sub(needed) < least.of(self.total)
    }
}

/// The file system that an image of a container's memory would be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// What it has left.
    pub room: Room,
    /// Bytes that would be written at most.
    pub needed: u64,
    /// What must be left.
    pub least: Share,
}

impl Disk {
    /// Whether there is no room for the image.
    pub fn is_short(self) -> bool {
        self.room.is_short(self.least, self.needed)
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            room,
            needed,
            least,
        } = self;
        write!(
            f,
            "an image of up to {needed} bytes would leave less than {} ({} bytes) of the disk, \
             which has {} bytes left",
            least.render(),
            least.of(room.total),
            room.free,
        )
    }
}

/// What is known about a container in light sleep.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LightSleep {
    /// The moment.
    pub now: Duration,
    /// When it fell asleep.
    pub since: Duration,
    /// When it was last tried to checkpoint it since then.
    pub tried: Option<Duration>,
    /// What failed checkpoints say, see [`BackOff::retry`](super::BackOff::retry).
    pub retry: Option<Retry>,
    /// The node's memory, where it can be told.
    pub memory: Option<Room>,
}

/// Why light sleep became deep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deepened {
    /// It had lasted for `deep-sleep-after`.
    Time,
    /// The node was short of memory.
    Pressure,
}

impl Deepened {
    /// The stable name, for status and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Pressure => "pressure",
        }
    }
}

/// The answer of [`deepen`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deepen {
    /// It is to be checkpointed now.
    Now(Deepened),
    /// Not yet; to be asked again after this time, which is never zero, or when memory runs short.
    Later(Duration),
    /// It stays light.
    Never,
}

/// Whether light sleep is to become deep, with so much memory to be left to the node.
pub fn deepen(settings: &Settings, min_memory: Share, seen: &LightSleep) -> Deepen {
    let after = match settings.deep_sleep_after {
        DeepSleepAfter::Immediately => Duration::ZERO,
        DeepSleepAfter::After(after) => after,
        DeepSleepAfter::Never => return Deepen::Never,
    };
    // What stopped the last try, such as a connection, is still there a moment later.
    let rested = seen.tried.map(|at| at.saturating_add(POLL.1));
    let allowed = seen.retry.as_ref().map(|retry| retry.until).max(rested);
    if let Some(wait) = allowed.and_then(|at| time_until(at, seen.now)) {
        return Deepen::Later(wait);
    }
    let due = seen.tried.unwrap_or(seen.since).saturating_add(after);
    let Some(wait) = time_until(due, seen.now) else {
        return Deepen::Now(Deepened::Time);
    };
    match seen.memory {
        Some(memory) if memory.is_short(min_memory, 0) => Deepen::Now(Deepened::Pressure),
        _ if min_memory.of(u64::MAX) == 0 => Deepen::Later(wait),
        _ => Deepen::Later(wait.min(POLL.1)),
    }
}

#[cfg(test)]
mod tests;
