//! Whether the node has the memory for a wake.
//!
//! A wake that takes the last of a node's memory costs others their lives: the kubelet evicts, or the
//! kernel kills. So it waits a moment for somebody to give memory back: sleepers that become deep at
//! such a time, a pod that is being evicted. It does not wait for long: what is available is an
//! estimate, a client is there for certain, and one that gives up has lost what a wake could
//! have saved. And a container that had its memory before it slept has a right to it.

use std::fmt;
use std::time::Duration;

use super::Room;
use crate::value::{Setting, Share};

/// Time between two looks at the node's memory while a wake waits. A look costs some 50 microseconds.
const LOOK: Duration = Duration::from_millis(200);

/// Memory that a wake takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WakeNeed {
    /// Bytes before the processes run.
    pub at_first: u64,
    /// Bytes until all of it is back.
    pub in_all: u64,
}

/// A wake that waits for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryWait {
    /// Bytes that it takes before the processes run.
    pub needed: u64,
    /// What the node has.
    pub room: Room,
    /// What must be left.
    pub least: Share,
}

impl fmt::Display for MemoryWait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            needed,
            room,
            least,
        } = self;
        write!(
            f,
            "it needs {needed} bytes of memory, the node has {} available and is to keep {} ({} bytes)",
            room.free,
            least.render(),
            least.of(room.total),
        )
    }
}

/// The answer of [`admit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It goes on; there is memory for all of it.
    Now,
    /// It goes on; there is memory for what is needed first, or it has waited for long enough. What
    /// can come later is not to come fast.
    Gently,
    /// Not yet; to be asked again after this time, which is never zero.
    Later(Duration),
}

/// Whether a wake that has `waited` goes on, with `least` to be left of the node's memory.
pub fn admit(
    least: Share,
    longest: Option<Duration>,
    need: WakeNeed,
    room: Room,
    waited: Duration,
) -> Admission {
    if !room.is_short(least, need.in_all) {
        return Admission::Now;
    }
    if !room.is_short(least, need.at_first) {
        return Admission::Gently;
    }
    let left = longest.unwrap_or_default().saturating_sub(waited);
    if left.is_zero() {
        Admission::Gently
    } else {
        Admission::Later(left.min(LOOK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::ByteSize;

    const LEAST: Share = Share::Bytes(ByteSize(100));
    const NEED: WakeNeed = WakeNeed {
        at_first: 10,
        in_all: 50,
    };
    const SECOND: Option<Duration> = Some(Duration::from_secs(1));

    fn ask(free: u64, waited: Duration) -> Admission {
        admit(LEAST, SECOND, NEED, Room { free, total: 1000 }, waited)
    }

    #[test]
    fn a_wake_that_fits_does_not_wait() {
        assert_eq!(ask(150, Duration::ZERO), Admission::Now);
        assert_eq!(ask(149, Duration::ZERO), Admission::Gently);
        assert_eq!(ask(110, Duration::ZERO), Admission::Gently);
    }

    #[test]
    fn one_that_does_not_waits_and_then_goes_on_anyway() {
        assert_eq!(ask(109, Duration::ZERO), Admission::Later(LOOK));
        let almost = Duration::from_millis(990);
        let rest = Duration::from_millis(10);
        assert_eq!(ask(109, almost), Admission::Later(rest));
        assert_eq!(ask(0, Duration::from_secs(1)), Admission::Gently);
        assert_eq!(ask(0, Duration::MAX), Admission::Gently);
    }

    #[test]
    fn who_is_not_to_wait_does_not() {
        let none = Room { free: 0, total: 10 };
        let never = admit(LEAST, None, NEED, none, Duration::ZERO);
        assert_eq!(never, Admission::Gently);
        let unbound = Share::Bytes(ByteSize(0));
        let answer = admit(unbound, SECOND, NEED, none, Duration::ZERO);
        assert_eq!(answer, Admission::Now);
    }

    #[test]
    fn it_says_what_it_waits_for() {
        let waits = MemoryWait {
            needed: 10,
            room: Room {
                free: 109,
                total: 1000,
            },
            least: Share::Percent(10),
        };
        assert_eq!(
            waits.to_string(),
            "it needs 10 bytes of memory, the node has 109 available and is to keep 10% (100 bytes)"
        );
    }
}
