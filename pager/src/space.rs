//! What is missing in one address space, and how events change it. No system calls.
//!
//! ```text
//!   known    every page whose content the image has, where the page is now
//!   missing  those of them that are not in memory: subset of known, same slots
//! ```
//!
//! A fault on a page that is not `missing` is on one that never had content, or lost it since: it
//! is filled with zeros. That holds also for addresses that were never heard of, since a mapping
//! grows without an event (a stack, `mremap` in place). It is never guessed too early: while an
//! event is on its way the kernel refuses to fill anything (`EAGAIN`), and what has been read is taken in before
//! the next fault is answered, in the order in which it took effect (`changes.rs`).

use std::ops::Range;

use crate::changes::Change;
use crate::runs::{Run, RunMap};

/// One address space.
#[derive(Debug, Clone)]
pub(crate) struct Space {
    /// A process that has it; none for one that was forked while memory was missing.
    pub(crate) pid: Option<i32>,
    known: RunMap,
    missing: RunMap,
}

impl Space {
    /// Nothing is missing, nothing known.
    pub(crate) fn new(pid: i32, page: u64) -> Self {
        Self {
            pid: Some(pid),
            known: RunMap::new(page),
            missing: RunMap::new(page),
        }
    }

    pub(crate) fn missing(&self) -> &RunMap {
        &self.missing
    }

    pub(crate) fn into_known(self) -> RunMap {
        self.known
    }

    /// The image is complete with this. It has the missing pages in the slots where they were.
    pub(crate) fn set_known(&mut self, known: RunMap) {
        debug_assert!(
            self.missing
                .iter()
                .all(|run| known.get(run.start) == Some(run.slot))
        );
        self.known = known;
    }

    /// The pages of `range` are in memory.
    pub(crate) fn filled(&mut self, range: Range<u64>) {
        self.missing.remove(range);
    }

    /// Something was done to it.
    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Withdraw(range) => {
                // Of these the image has the content.
                let gone: Vec<Run> = self.known.within(range.clone()).collect();
                gone.into_iter().for_each(|run| self.missing.insert(run));
            }
            Change::Remove(range) | Change::Unmap(range) => {
                self.known.remove(range.clone());
                self.missing.remove(range.clone());
            }
            Change::Remap { from, to, len } => {
                self.known.relocate(*from, *to, *len);
                self.missing.relocate(*from, *to, *len);
            }
            Change::Fork { .. } => {}
        }
    }

    /// The program forked. What its child misses is what it misses itself: the kernel has kept
    /// everybody from filling pages between the copy and the report.
    pub(crate) fn fork(&self) -> Self {
        Self {
            pid: None,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;

    fn space() -> Space {
        let mut known = RunMap::new(PAGE);
        known.insert(Run {
            start: 0,
            end: 32 * PAGE,
            slot: 100,
        });
        let mut space = Space::new(1, PAGE);
        space.set_known(known);
        space
    }

    fn pages(first: u64, end: u64) -> Range<u64> {
        first * PAGE..end * PAGE
    }

    fn remap(from: u64, to: u64, pages: u64) -> Change {
        Change::Remap {
            from: from * PAGE,
            to: to * PAGE,
            len: pages * PAGE,
        }
    }

    #[test]
    fn a_page_that_was_taken_away_again_comes_from_the_image_again() {
        let mut space = space();
        space.apply(&Change::Withdraw(pages(0, 16)));
        space.filled(pages(3, 4));
        assert_eq!(space.missing().get(3 * PAGE), None);
        space.apply(&Change::Withdraw(pages(0, 16)));
        assert_eq!(space.missing().get(3 * PAGE), Some(103));
    }

    #[test]
    fn removed_pages_stay_zero_and_moved_ones_keep_their_content() {
        let mut space = space();
        space.apply(&Change::Withdraw(pages(0, 32)));
        space.apply(&Change::Remove(pages(4, 6)));
        space.apply(&remap(0, 64, 8));
        assert_eq!(space.missing().get(0), None);
        assert_eq!(space.missing().get(64 * PAGE), Some(100));
        assert_eq!(space.missing().get(68 * PAGE), None);
        assert_eq!(space.missing().get(71 * PAGE), Some(107));
        space.apply(&Change::Withdraw(pages(64, 72)));
        assert_eq!(space.missing().get(68 * PAGE), None);
    }

    #[test]
    fn a_child_goes_its_own_way() {
        let mut parent = space();
        parent.apply(&Change::Withdraw(pages(0, 32)));
        let mut child = parent.fork();
        parent.filled(pages(0, 32));
        child.apply(&Change::Unmap(pages(1, 2)));
        assert_eq!(child.missing().get(0), Some(100));
        assert_eq!(child.missing().get(PAGE), None);
        assert_eq!(child.pid, None);
        assert!(parent.missing().is_empty());
    }

    proptest! {
        #[test]
        fn what_is_missing_is_known(steps in proptest::collection::vec((0..5, 0..48u64, 0..12u64, 0..48u64), 0..60)) {
            let mut space = space();
            for (step, at, len, to) in steps {
                let range = pages(at, at + len);
                match step {
                    0 => space.apply(&Change::Withdraw(range)),
                    1 => space.filled(range),
                    2 => space.apply(&Change::Unmap(range)),
                    3 if to + len <= at || at + len <= to => {
                        space.apply(&remap(at, to, len));
                    }
                    _ => space = space.fork(),
                }
                for run in space.missing().iter() {
                    for (index, address) in (run.start..run.end).step_by(PAGE as usize).enumerate() {
                        prop_assert_eq!(space.known.get(address), Some(run.slot + index as u64));
                    }
                }
            }
        }
    }
}
