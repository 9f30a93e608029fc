//! Where the content of pages is: runs of addresses, each with the slot of its first page.
//!
//! ```text
//!   address   0x1000        0x5000     0x8000
//!             |-- slot 7.. --|  (hole)  |-- slot 2.. --|
//! ```
//!
//! Invariants: runs do not overlap and are not empty; neighbours whose slots continue are one run.
//! All addresses are multiples of the page size.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A run of pages and where its content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// Address of its first byte.
    pub(crate) start: u64,
    /// Address behind its last byte.
    pub(crate) end: u64,
    /// Slot of its first page; the others follow.
    pub(crate) slot: u64,
}

/// A map from page addresses to slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunMap {
    /// By start: end and first slot. Whoever only keeps a copy has it in common with the others.
    runs: Arc<BTreeMap<u64, (u64, u64)>>,
    page: u64,
    bytes: u64,
}

impl RunMap {
    /// An empty map of pages with `page` bytes.
    pub(crate) fn new(page: u64) -> Self {
        Self {
            runs: Arc::default(),
            page,
            bytes: 0,
        }
    }

    /// Bytes of all runs.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of a page.
    pub(crate) fn page(&self) -> u64 {
        self.page
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The slot of the page at `address`.
    pub(crate) fn get(&self, address: u64) -> Option<u64> {
        let (&start, &(end, slot)) = self.runs.range(..=address).next_back()?;
        (address < end).then(|| slot + (address - start) / self.page)
    }

    /// All runs, in the order of their addresses.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Run> {
        self.runs
            .iter()
            .map(|(&start, &(end, slot))| Run { start, end, slot })
    }

    /// The parts of runs that lie in `range`, in order.
    pub(crate) fn within(&self, range: Range<u64>) -> impl Iterator<Item = Run> {
        let first = self
            .runs
            .range(..range.start)
            .next_back()
            .map_or(range.start, |(&start, _)| start);
        let page = self.page;
        self.runs
            .range(first..range.end.max(first))
            .filter_map(move |(&start, &(end, slot))| {
                let (from, to) = (start.max(range.start), end.min(range.end));
                (from < to).then(|| Run {
                    start: from,
                    end: to,
                    slot: slot + (from - start) / page,
                })
            })
    }

    /// The first part of a run at or behind `address`.
    pub(crate) fn next(&self, address: u64) -> Option<Run> {
        self.within(address..u64::MAX).next()
    }

    /// Says where the pages of `run` are. What was known about its addresses is forgotten.
    pub(crate) fn insert(&mut self, run: Run) {
        if run.start >= run.end {
            return;
        }
        let before = self.runs.range(..run.end).next_back();
        // Most come in order, to where nothing is known.
        if before.is_some_and(|(_, &(end, _))| end > run.start) {
            self.remove(run.start..run.end);
        }
        self.bytes += run.end - run.start;
        let runs = Arc::make_mut(&mut self.runs);
        let (mut start, mut end, mut slot) = (run.start, run.end, run.slot);
        if let Some((&before, &(before_end, before_slot))) = runs.range(..start).next_back()
            && before_end == start
            && before_slot + (start - before) / self.page == slot
        {
            (start, slot) = (before, before_slot);
        }
        if let Some(&(after_end, after_slot)) = runs.get(&end)
            && slot + (end - start) / self.page == after_slot
        {
            runs.remove(&end);
            end = after_end;
        }
        runs.insert(start, (end, slot));
    }

    /// Forgets the addresses of `range`. Returns what was known.
    pub(crate) fn remove(&mut self, range: Range<u64>) -> Vec<Run> {
        let removed: Vec<Run> = self.within(range).collect();
        if removed.is_empty() {
            return removed;
        }
        let runs = Arc::make_mut(&mut self.runs);
        for cut in &removed {
            let Some((&start, &(end, slot))) = runs.range(..=cut.start).next_back() else {
                continue;
            };
            runs.remove(&start);
            if start < cut.start {
                runs.insert(start, (cut.start, slot));
            }
            if cut.end < end {
                let rest = slot + (cut.end - start) / self.page;
                runs.insert(cut.end, (end, rest));
            }
            self.bytes -= cut.end - cut.start;
        }
        removed
    }

    /// What was known about `len` bytes at `from` is now true of those at `to`. What was known of
    /// the target is forgotten.
    pub(crate) fn relocate(&mut self, from: u64, to: u64, len: u64) {
        let moved = self.remove(from..from.saturating_add(len));
        self.remove(to..to.saturating_add(len));
        for run in moved {
            self.insert(Run {
                start: run.start - from + to,
                end: run.end - from + to,
                slot: run.slot,
            });
        }
    }
}

#[cfg(test)]
mod tests;
