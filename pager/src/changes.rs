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
//! Of several orders that are possible, that which differs least from the order of the reports is taken. There are such
//! only where a thread is held up while another one makes two changes of the same addresses.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::RawFd;

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
            let moved = rest
                .iter()
                .take(at)
                .position(|other| matches!(&unmapping, Change::Unmap(range) if other.source().as_ref() == Some(range)));
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
    // After the move.
    let (mut there, mut possible) = (true, true);
    for change in rest {
        if change.leaves(page) {
            possible &= there;
        } else if change.arrives_at(page) {
            possible &= !there;
            there = true;
        } else if change.unmaps(page) {
            there = false;
        }
    }
    let fits = possible && there == is_registered(page)?;
    Some((!fits).then_some(at))
}

#[cfg(test)]
mod tests;
