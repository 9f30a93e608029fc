//! What need not be read: nobody has written to it since it was found to be as in the image.

use std::ops::Range;
use std::sync::{PoisonError, RwLock};

use super::find::{Leaving, subtract};
use crate::image::{Place, Places};
use crate::runs::{Run, RunMap};
use crate::working_set::WorkingSet;

impl Leaving {
    /// What of the process's content is in the image as it is, and what has to be read. What wakes need and the image
    /// has compressed is among the latter: it is written once more, plain.
    pub(super) fn told_apart(
        &self,
        needed: &WorkingSet,
        places: &RwLock<Places>,
    ) -> (Vec<Run>, Vec<Range<u64>>) {
        let mut same = self.same.clone();
        let places = places.read().unwrap_or_else(PoisonError::into_inner);
        for run in self.same.iter() {
            for page in needed.within(self.pid, run.start..run.end) {
                let slot = same.get(page);
                if slot.is_some_and(|slot| matches!(places.get(slot), Place::Record { .. })) {
                    same.remove(page..page + same.page());
                }
            }
        }
        let populated = self.regions.iter().flat_map(|region| &region.populated);
        let mut to_read = Vec::new();
        let mut unread = Vec::new();
        for run in populated {
            let (mut known, rest) = split(run, &same);
            unread.append(&mut known);
            to_read.extend(rest);
        }
        (unread, to_read)
    }
}

/// What of `content` is in `same`, and the rest.
fn split(content: &Range<u64>, same: &RunMap) -> (Vec<Run>, Vec<Range<u64>>) {
    let known: Vec<Run> = same.within(content.clone()).collect();
    let ranges: Vec<_> = known.iter().map(|run| run.start..run.end).collect();
    let rest = subtract(std::slice::from_ref(content), &ranges);
    (known, rest)
}

#[cfg(test)]
mod tests {
    use super::super::find::Region;
    use super::*;
    use crate::sys::page_size;

    fn pages(first: u64, end: u64) -> Range<u64> {
        first * page_size()..end * page_size()
    }

    fn run(first: u64, end: u64, slot: u64) -> Run {
        let Range { start, end } = pages(first, end);
        Run { start, end, slot }
    }

    /// A process with content in pages 0 to 100, of which 10 to 20 are as in slots 110 to 120.
    fn process() -> Leaving {
        let nothing = || RunMap::new(page_size());
        let mut same = nothing();
        same.insert(run(10, 20, 110));
        // It has none any more.
        same.insert(run(200, 300, 400));
        Leaving {
            pid: 1,
            regions: vec![Region {
                range: pages(0, 1000),
                populated: vec![pages(0, 15), pages(16, 100)],
                staying: Vec::new(),
                huge: Vec::new(),
            }],
            missing: nothing(),
            known: nothing(),
            same,
            ahead: Vec::new(),
            uffd: None,
            left: Vec::new(),
        }
    }

    #[test]
    fn what_nobody_has_written_to_is_not_read() {
        let nothing = WorkingSet::new(page_size(), 100);
        let (unread, to_read) = process().told_apart(&nothing, &RwLock::default());
        assert_eq!(unread, [run(10, 15, 110), run(16, 20, 116)]);
        assert_eq!(to_read, [pages(0, 10), pages(20, 100)]);
    }

    #[test]
    fn what_wakes_need_is_read_where_the_image_has_it_compressed() {
        let mut needed = WorkingSet::new(page_size(), 100);
        needed.learn(&[(1, pages(12, 13).start), (1, pages(17, 18).start)]);
        let places = RwLock::new(Places::default());
        let record = |slot| Place::Record {
            offset: 0,
            length: slot,
        };
        places.write().unwrap().set(112, record(112));
        places.write().unwrap().set(118, record(118));
        let (unread, to_read) = process().told_apart(&needed, &places);
        assert_eq!(
            unread,
            [run(10, 12, 110), run(13, 15, 113), run(16, 20, 116)]
        );
        assert_eq!(to_read, [pages(0, 10), pages(12, 13), pages(20, 100)]);
    }
}
