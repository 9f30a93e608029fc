//! Which of its parent's changes a child has that was forked among them.
//!
//! It has those that took effect before it was forked. Reports do not say which these are, but its own address space
//! does: of the changes of one page, which took effect in order, it has the first few, as many as fit to whether the page
//! is registered in it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::os::fd::RawFd;

use super::Change;
use crate::runs::RunMap;

/// For each of the changes, in the order of their effect, whether `child` has it. `missing` is what was missing before
/// them; `was_registered` says of a page whether it was registered in the child when it was forked.
pub(crate) fn inherited<E>(
    child: RawFd,
    changes: &[Change],
    missing: &RunMap,
    was_registered: &mut dyn FnMut(u64) -> Result<bool, E>,
) -> Result<Vec<bool>, E> {
    let fork = Change::Fork { child };
    let fork = changes.iter().position(|change| *change == fork);
    // Where nothing else says it. What is given up at the same time as somebody forks is there in the child, or not.
    let reported = |at: usize| fork.is_none_or(|fork| at < fork);
    let mut pages = Vec::new();
    for address in pages_of(changes, missing) {
        let seen = was_registered(address)?;
        pages.push(Page::new(address, seen, changes, missing));
    }
    let mut has = vec![None; changes.len()];
    tell(&pages, &mut has);
    while let Some(at) = has.iter().position(Option::is_none) {
        // Whichever of the two differs less from the order of the reports.
        let guesses = [true, false].map(|guess| {
            let mut has = has.clone();
            has[at] = Some(guess);
            tell(&pages, &mut has);
            let told = has.iter().enumerate();
            let differs = told.filter(|(at, has)| has.is_some_and(|has| has != reported(*at)));
            (differs.count(), has)
        });
        let [with, without] = guesses;
        has = if with.0 < without.0 || with.0 == without.0 && reported(at) {
            with.1
        } else {
            without.1
        };
    }
    Ok(has.into_iter().flatten().collect())
}

/// Tells all that follows from what pages say and from what is known.
fn tell(pages: &[Page], has: &mut [Option<bool>]) {
    while pages.iter().any(|page| page.tell(has)) {}
}

/// A page, and what the child says of it.
struct Page {
    /// The changes that are about it.
    touching: Vec<usize>,
    /// How many of them there can have been.
    possible: Vec<usize>,
}

impl Page {
    fn new(address: u64, seen: bool, changes: &[Change], missing: &RunMap) -> Self {
        let touches = |at: &usize| {
            let change = &changes[*at];
            change.arrives_at(address) || change.leaves(address) || change.unmaps(address)
        };
        let touching: Vec<usize> = (0..changes.len()).filter(touches).collect();
        // What is unmapped first can have been anything.
        let mut registered = match touching.first().map(|at| &changes[*at]) {
            _ if missing.get(address).is_some() => Some(true),
            Some(first) if !first.unmaps(address) => Some(first.leaves(address)),
            _ => None,
        };
        let fits =
            |registered: Option<bool>| registered.is_none_or(|registered| registered == seen);
        let mut possible = Vec::from_iter(fits(registered).then_some(0));
        for (number, at) in touching.iter().enumerate() {
            let change = &changes[*at];
            // Where pages have moved away from stays registered unless it is reported as unmapped.
            let unmapped = |source: Range<u64>| changes[*at..].contains(&Change::Unmap(source));
            if change.arrives_at(address) {
                registered = Some(true);
            } else if change.unmaps(address) || change.source().is_some_and(unmapped) {
                registered = Some(false);
            }
            possible.extend(fits(registered).then_some(number + 1));
        }
        Self { touching, possible }
    }

    /// Tells what follows from it for changes of which nothing is known yet. Whether there are such.
    fn tell(&self, has: &mut [Option<bool>]) -> bool {
        let fits = |count: &&usize| {
            let mut expected = self.touching.iter().enumerate();
            expected.all(|(number, at)| has[*at].is_none_or(|has| has == (number < **count)))
        };
        let counts: Vec<usize> = self.possible.iter().filter(fits).copied().collect();
        let (Some(least), Some(most)) = (counts.iter().min(), counts.iter().max()) else {
            return false;
        };
        let mut told = false;
        for (number, at) in self.touching.iter().enumerate() {
            let known = if number < *least {
                true
            } else if number >= *most {
                false
            } else {
                continue;
            };
            told |= has[*at].replace(known).is_none();
        }
        told
    }
}

/// Pages that show what has happened: of what each move and unmapping is about, the first with content that is missing,
/// and where that has moved.
fn pages_of(changes: &[Change], missing: &RunMap) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    for change in changes {
        let ranges = match change {
            Change::Unmap(range) => vec![range.clone()],
            _ => change.source().into_iter().chain(change.target()).collect(),
        };
        for range in ranges {
            let first = missing.within(range.clone()).next();
            pages.insert(first.map_or(range.start, |run| run.start));
        }
        if let Change::Remap { from, to, len } = *change {
            let moved: Vec<u64> = pages
                .range(from..from.saturating_add(len))
                .copied()
                .collect();
            pages.extend(moved.into_iter().map(|page| page - from + to));
        }
    }
    pages
}
