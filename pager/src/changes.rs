//! What happens to an address space, in the order in which it took effect. No system calls.
//!
//! The kernel reports a change after it has made it, without a lock over both, so that one thread's report can overtake
//! another's. When one has unmapped addresses, or moved away from them, and another has moved to them since, the order
//! decides whose content is there:
//!
//! ```text
//!   thread 1:  unmaps A .............................. reports it
//!   thread 2:            maps A, moves B to A, reports it
//!
//!   read:       B moves to A, A is unmapped       as if nothing were left at A
//!   in effect:  A is unmapped, B moves to A
//! ```
//!
//! While a report is on its way the kernel fills nothing. So reports are collected until there are no more, and then the
//! kernel is asked what has become of it all: whether an address that two of them are about is registered in the end.
//! No fault is answered and nothing is filled before the changes have been put in order.
//!
//! Of several orders that are possible, one that differs little from the order of the reports is taken. There are such
//! only where a thread is held up while others make two changes of the same addresses.

mod inherited;

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::RawFd;

use crate::runs::{Run, RunMap};
use crate::sys::page_size;
pub(crate) use inherited::inherited;

/// Something that was done to an address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// It was forked. The child's userfaultfd has this number in the thread's table.
    Fork { child: RawFd },
    /// Pages moved. The kernel reports after it that the addresses where they were are unmapped, unless they stay mapped
    /// (`MREMAP_DONTUNMAP`).
    Remap { from: u64, to: u64, len: u64 },
    /// The addresses are gone, if they were there.
    Unmap(Range<u64>),
    /// The program has given up the content.
    Remove(Range<u64>),
    /// This program has taken the pages away.
    Withdraw(Range<u64>),
}

impl Change {
    /// Where pages move to.
    pub(crate) fn target(&self) -> Option<Range<u64>> {
        match self {
            Self::Remap { to, len, .. } => Some(*to..to.saturating_add(*len)),
            _ => None,
        }
    }

    /// Where pages move away from.
    pub(crate) fn source(&self) -> Option<Range<u64>> {
        match self {
            Self::Remap { from, len, .. } => Some(*from..from.saturating_add(*len)),
            _ => None,
        }
    }

    /// Whether pages move to `page`.
    pub(crate) fn arrives_at(&self, page: u64) -> bool {
        self.target().is_some_and(|range| range.contains(&page))
    }

    /// Whether pages move away from `page`.
    pub(crate) fn leaves(&self, page: u64) -> bool {
        self.source().is_some_and(|range| range.contains(&page))
    }

    /// Whether `page` is unmapped.
    pub(crate) fn unmaps(&self, page: u64) -> bool {
        matches!(self, Self::Unmap(range) if range.contains(&page))
    }
}

/// All changes of an address space since they were last put in order, as they were read, in the order of their effect.
/// `is_registered` says whether a page is registered after all of them. None when it cannot say, since there is another
/// change by now.
pub(crate) fn in_order(
    read: &[Change],
    is_registered: &mut dyn FnMut(u64) -> Option<bool>,
) -> Option<Vec<Change>> {
    let mut rest: VecDeque<Change> = read.iter().cloned().collect();
    let mut ordered = Vec::with_capacity(rest.len());
    while let Some(next) = rest.pop_front() {
        take(next, &mut rest, &mut ordered, is_registered)?;
    }
    Some(ordered)
}

/// Takes a change, and before it those of the rest without which it could not have happened.
fn take(
    change: Change,
    rest: &mut VecDeque<Change>,
    ordered: &mut Vec<Change>,
    is_registered: &mut dyn FnMut(u64) -> Option<bool>,
) -> Option<()> {
    if let Some(target) = change.target() {
        while let Some(at) = overtaken(&target, rest, is_registered)? {
            let unmapping = rest.remove(at)?;
            // It can be the second report of a move.
            let is_first =
                |other: &Change| other.source().map(Change::Unmap).as_ref() == Some(&unmapping);
            let moved = rest.iter().take(at).position(is_first);
            if let Some(moved) = moved.and_then(|at| rest.remove(at)) {
                take(moved, rest, ordered, is_registered)?;
            }
            ordered.push(unmapping);
        }
    }
    ordered.push(change);
    Some(())
}

/// The first unmapping in the rest that has to come before a move to `target`: otherwise something could not have
/// happened, or would not have come to what there is.
fn overtaken(
    target: &Range<u64>,
    rest: &VecDeque<Change>,
    is_registered: &mut dyn FnMut(u64) -> Option<bool>,
) -> Option<Option<usize>> {
    let common = |change: &Change| match change {
        Change::Unmap(range) => {
            let start = range.start.max(target.start);
            (start < range.end.min(target.end)).then_some(start)
        }
        _ => None,
    };
    let mut unmappings = rest.iter().enumerate();
    let Some((at, page)) = unmappings.find_map(|(at, change)| Some((at, common(change)?))) else {
        return Some(None);
    };
    let registered = is_registered(page)?;
    let (mut arrivals, mut unmappings) = (0, 0);
    for change in rest {
        arrivals += usize::from(change.arrives_at(page));
        unmappings += usize::from(change.unmaps(page));
    }
    // Somebody unmaps it, somebody moves there, and so on, in whatever order that was reported.
    let by_turns = unmappings == arrivals + usize::from(!registered);
    let fits = by_turns
        || follow(target, rest).is_some_and(|there| there.get(page).is_some() == registered);
    Some((!fits).then_some(at))
}

/// What of `target` is there after a move to it and the rest, in the order in which it was reported. None when it cannot
/// have been that.
fn follow(target: &Range<u64>, rest: &VecDeque<Change>) -> Option<RunMap> {
    let mut there = RunMap::new(page_size());
    let arrive = |there: &mut RunMap, range: &Range<u64>| {
        let (start, end) = (range.start.max(target.start), range.end.min(target.end));
        there.insert(Run {
            start,
            end,
            slot: 0,
        });
    };
    let touches = |range: &Range<u64>| range.start < target.end && target.start < range.end;
    let is_there =
        |there: &RunMap, range: &Range<u64>| there.within(range.clone()).next().is_some();
    arrive(&mut there, target);
    for change in rest {
        if let Some(source) = change.source().filter(touches)
            && !is_there(&there, &source)
        {
            return None;
        }
        if let Some(range) = change.target().filter(touches) {
            if is_there(&there, &range) {
                return None;
            }
            arrive(&mut there, &range);
        }
        if let Change::Unmap(range) = change
            && touches(range)
        {
            // Of what is not there nothing is reported, but of a range with something else in it.
            let elsewhere = range.start < target.start || range.end > target.end;
            if !elsewhere && !is_there(&there, range) {
                return None;
            }
            there.remove(range.clone());
        }
    }
    Some(there)
}

#[cfg(test)]
mod tests;
