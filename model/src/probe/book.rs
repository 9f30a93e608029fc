//! What is known about a container's probes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::Request;

/// A probe that has not come for this long, nor for three times its period, has stopped coming.
pub const STILL_COMING: Duration = Duration::from_secs(15);

/// Requests remembered for a port; the one that was not seen for longest goes first.
const MOST: usize = 16;

/// What the gate knows about the probes of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortSeen {
    /// The port.
    pub port: u16,
    /// Something listens on it.
    pub listening: bool,
    /// When the last one came.
    pub last: Duration,
    /// The time between the last two, where there were two.
    pub gap: Option<Duration>,
}

/// Probes that have to pass before the container may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// The port that they come to.
    pub port: u16,
    /// The last one failed, or must.
    pub failed: bool,
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.failed {
            true => "fails",
            false => "has not passed since it was last used",
        };
        write!(f, "a probe of port {} {what}", self.port)
    }
}

/// The requests that the application has answered, with what came of them. Belongs to one process of a
/// container: another one has to answer anew.
///
/// A request is *known* if it passed when it last reached the application, and that was after the
/// container had last been used: what it did for somebody since could have changed its mind. So
/// whoever falls asleep has answered each probe that still comes, and those that are not known any more
/// wake it if they do come. A port that is only opened needs no answer: its socket listens, asleep too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Book {
    ports: BTreeMap<u16, Vec<Entry>>,
    /// Ports whose probes were all seen once: since then each of them is waited for by itself.
    learned: BTreeSet<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    request: Request,
    passed: bool,
    /// When it last reached the application.
    asked: Duration,
    /// When it last came.
    seen: Duration,
    /// The time between the last two.
    gap: Option<Duration>,
}

impl Entry {
    /// Whether it has been answered since.
    fn is_fresh(&self, since: Duration) -> bool {
        self.request == Request::Tcp || self.asked >= since
    }
}

/// From when on an answer counts.
fn fresh_since(idle_since: Duration, learning_since: Option<Duration>) -> Duration {
    learning_since.map_or(idle_since, |learning| learning.min(idle_since))
}

/// For how long something with this period is waited for.
fn patience(gap: Option<Duration>) -> Duration {
    gap.map_or(STILL_COMING, |gap| gap.saturating_mul(3).max(STILL_COMING))
}

impl Book {
    /// Whether a sleeping container's answer to `request` is known. It has come at `now`.
    pub fn knows(&mut self, port: u16, request: &Request, now: Duration) -> bool {
        if *request == Request::Tcp {
            self.note(port, Request::Tcp, true, now);
            return true;
        }
        let mut entries = self.ports.get_mut(&port).into_iter().flatten();
        let entry = entries.find(|entry| entry.request == *request && entry.passed);
        match entry {
            Some(entry) if !matches!(request, Request::Other | Request::Hook) => {
                entry.gap = now.checked_sub(entry.seen);
                entry.seen = now;
                true
            }
            _ => false,
        }
    }

    /// The application has answered `request` at `now`, or should have.
    pub fn note(&mut self, port: u16, request: Request, passed: bool, now: Duration) {
        if request == Request::Hook {
            return;
        }
        let entries = self.ports.entry(port).or_default();
        let before = entries.iter().position(|entry| entry.request == request);
        let before = before.map(|at| entries.swap_remove(at));
        if entries.len() == MOST
            && let Some((at, _)) = entries
                .iter()
                .enumerate()
                .min_by_key(|(_, entry)| entry.seen)
        {
            entries.swap_remove(at);
        }
        entries.push(Entry {
            request,
            passed,
            asked: now,
            seen: now,
            gap: before.and_then(|entry| now.checked_sub(entry.seen)),
        });
    }

    /// Which probes have to pass before the container may sleep, which was last used at `idle_since`.
    /// `learning_since`: from when on every probe reaches the application in the book's sight, whoever
    /// else uses it.
    pub fn pending(
        &self,
        seen: &[PortSeen],
        idle_since: Duration,
        learning_since: Option<Duration>,
        now: Duration,
    ) -> Option<Pending> {
        let fresh_since = fresh_since(idle_since, learning_since);
        let learning_since = learning_since.unwrap_or(now);
        let learning_for = now.saturating_sub(learning_since);
        let comes = |last: Duration, gap| now.saturating_sub(last) <= patience(gap);
        for at in seen.iter().filter(|at| comes(at.last, at.gap)) {
            let port = at.port;
            if !at.listening {
                return Some(Pending { port, failed: true });
            }
            let entries = self.ports.get(&port).into_iter().flatten();
            let coming: Vec<_> = entries
                .filter(|entry| comes(entry.seen.max(learning_since), entry.gap))
                .collect();
            if coming.iter().any(|entry| !entry.passed) {
                return Some(Pending { port, failed: true });
            }
            // Two probes of the same period have both come in twice their longest pause.
            let all = 2 * at.gap.unwrap_or_default();
            let unseen = !self.learned.contains(&port) && learning_for < all;
            if unseen
                || coming.is_empty()
                || coming.iter().any(|entry| !entry.is_fresh(fresh_since))
            {
                let failed = false;
                return Some(Pending { port, failed });
            }
        }
        None
    }

    /// The container falls asleep: forgets what [`pending`](Self::pending), with the same times, would
    /// not go by.
    pub fn fall_asleep(&mut self, idle_since: Duration, learning_since: Option<Duration>) {
        let fresh_since = fresh_since(idle_since, learning_since);
        self.learned.extend(self.ports.keys());
        for entries in self.ports.values_mut() {
            entries.retain(|entry| entry.passed && entry.is_fresh(fresh_since));
        }
    }
}
