//! What can leave: address spaces, their mappings, the pages in them.

use std::cmp::Ordering;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use podmotion_inject::{Process, Seized};

use super::locks::{merged, pages_of_locks};
use super::{OutError, proc};
use crate::maps::{self, Movable};
use crate::runs::RunMap;
use crate::stats::OutStats;
use crate::sys::kinship;
use crate::sys::pagemap::Pagemap;
use crate::watch::Ahead;

/// Pieces of one mapping that are taken away: each costs a system call in the process. What is in
/// the smaller ones of more than these stays.
const MOST_PIECES: usize = 512;

/// A process whose memory is to leave.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) pid: i32,
    pub(super) regions: Vec<Region>,
    /// Pages that are missing already.
    pub(super) missing: RunMap,
    pub(super) known: RunMap,
    /// Pages that are as in the image, and need not be read.
    pub(super) same: RunMap,
    /// Those of them that have been written to the image lately.
    pub(super) ahead: Vec<Ahead>,
    /// What its memory can be registered with.
    pub(super) uffd: Option<OwnedFd>,
    /// Content that is left in place, of what the last wakes have needed.
    pub(super) left: Vec<Range<u64>>,
}

/// A mapping of it.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) range: Range<u64>,
    /// Pages with content.
    pub(super) populated: Vec<Range<u64>>,
    /// Pages with content that stay, in order.
    pub(super) staying: Vec<Range<u64>>,
    /// What is in huge pages.
    pub(super) huge: Vec<Range<u64>>,
}

impl Leaving {
    /// A page turned out not to leave.
    pub(super) fn stays(&mut self, page: Range<u64>) {
        if let Some(region) = self
            .regions
            .iter_mut()
            .find(|region| region.range.contains(&page.start))
        {
            let at = region
                .staying
                .partition_point(|range| range.start < page.start);
            region.staying.insert(at, page);
        }
    }
}

impl Region {
    /// The parts that are taken away: all between what stays, where there is something to take.
    pub(super) fn pieces(&self) -> Vec<Range<u64>> {
        let mut pieces = Vec::new();
        let mut start = self.range.start;
        for staying in self
            .staying
            .iter()
            .cloned()
            .chain(std::iter::once(self.range.end..self.range.end))
        {
            let piece = start..staying.start;
            let first = self.populated.partition_point(|run| run.end <= piece.start);
            let any = self
                .populated
                .get(first)
                .is_some_and(|run| run.start < piece.end);
            if any && piece.start < piece.end {
                pieces.push(piece);
            }
            start = start.max(staying.end);
        }
        if pieces.len() > MOST_PIECES {
            pieces.sort_unstable_by_key(|piece| std::cmp::Reverse(piece.end - piece.start));
            pieces.truncate(MOST_PIECES);
        }
        pieces
    }
}

/// One process for each address space.
pub(super) fn address_spaces(seized: &mut Seized) -> Result<Vec<i32>, OutError> {
    let mut pids = Vec::new();
    for process in seized.processes() {
        let pid = process.pid();
        if process.threads().next().is_none() {
            continue;
        }
        if !process.is_past_seccomp() && has_filters(pid).map_err(proc("look at", pid))? {
            return Err(OutError::Seccomp { pid });
        }
        pids.push(pid);
    }
    let mut failed = None;
    let mut compare = |first: &i32, second: &i32| {
        kinship::compare(*first, *second).unwrap_or_else(|source| {
            failed = Some(proc("compare address spaces of", *first)(source));
            Ordering::Greater
        })
    };
    let mut distinct: Vec<i32> = Vec::new();
    for pid in pids {
        if distinct
            .iter()
            .all(|other| compare(other, &pid) != Ordering::Equal)
        {
            distinct.push(pid);
        }
    }
    failed.map_or(Ok(distinct), Err)
}

fn has_filters(pid: i32) -> io::Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(!status.lines().any(|line| line == "Seccomp:\t0"))
}

/// The mappings of a process that have something to take.
pub(super) fn regions(
    process: &Process,
    ours: bool,
    stats: &mut OutStats,
) -> Result<Vec<Region>, OutError> {
    let pid = process.pid();
    let movable = maps::movable(pid).map_err(proc("read the mappings of", pid))?;
    let pagemap = Pagemap::open(pid).map_err(proc("open the page table of", pid))?;
    let mut seen = maps::read_by_others(pid).map_err(proc("look at", pid))?;
    seen.extend(pages_of_locks(process));
    let seen = merged(seen);
    let mut regions = Vec::new();
    for Movable {
        range,
        shared,
        armed,
        huge,
    } in movable
    {
        if armed && !ours {
            continue;
        }
        let scan = |exclusive| {
            pagemap
                .populated(&range, exclusive)
                .map_err(proc("read the page table of", pid))
        };
        let all = scan(false)?;
        let (populated, staying) = if shared {
            let own = scan(true)?;
            let staying = subtract(&all, &own);
            (own, staying)
        } else {
            (all, Vec::new())
        };
        let seen = {
            let first = seen.partition_point(|pages| pages.end <= range.start);
            let behind = seen.partition_point(|pages| pages.start < range.end);
            &seen[first..behind]
        };
        let kept = intersect(&populated, seen);
        let populated = subtract(&populated, &kept);
        let mut staying = [staying, kept].concat();
        staying.sort_unstable_by_key(|run| run.start);
        let bytes = |runs: &[Range<u64>]| runs.iter().map(|run| run.end - run.start).sum::<u64>();
        stats.scanned_bytes += bytes(&populated);
        stats.staying_bytes += bytes(&staying);
        if !populated.is_empty() {
            // To look for them takes as long as to look for pages.
            let huge = match huge {
                true => pagemap.huge(&range),
                false => Ok(Vec::new()),
            }
            .map_err(proc("read the page table of", pid))?;
            regions.push(Region {
                range,
                populated,
                staying,
                huge,
            });
        }
    }
    Ok(regions)
}

/// What is in both of them. Both are in order.
pub(super) fn intersect(some: &[Range<u64>], others: &[Range<u64>]) -> Vec<Range<u64>> {
    let common = |run: &Range<u64>, other: &Range<u64>| {
        let common = run.start.max(other.start)..run.end.min(other.end);
        (common.start < common.end).then_some(common)
    };
    some.iter()
        .flat_map(|run| others.iter().filter_map(move |other| common(run, other)))
        .collect()
}

/// What is in `all` and not in `some`, which is part of it. Both are in order.
pub(super) fn subtract(all: &[Range<u64>], some: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut rest = Vec::new();
    let mut some = some.iter().peekable();
    for run in all {
        let mut start = run.start;
        while let Some(taken) = some.next_if(|taken| taken.start < run.end) {
            if start < taken.start {
                rest.push(start..taken.start);
            }
            start = taken.end;
        }
        if start < run.end {
            rest.push(start..run.end);
        }
    }
    rest
}

#[cfg(test)]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "lists of ranges, of which some have one"
)]
mod tests {
    use super::*;

    fn region(populated: &[Range<u64>], staying: &[Range<u64>]) -> Region {
        Region {
            range: 0..100,
            populated: populated.to_vec(),
            staying: staying.to_vec(),
            huge: Vec::new(),
        }
    }

    #[test]
    fn holes_are_taken_along_and_what_stays_is_left_out() {
        assert_eq!(region(&[10..20, 50..60], &[]).pieces(), [0..100]);
        assert_eq!(
            region(&[10..20, 50..60], &[30..40]).pieces(),
            [0..30, 40..100]
        );
        assert_eq!(region(&[10..20], &[0..5, 20..40]).pieces(), [5..20]);
        assert!(
            region(&[10..20], &[10..20])
                .pieces()
                .iter()
                .all(|piece| piece.end <= 10)
        );
    }

    #[test]
    fn of_too_many_pieces_the_large_ones_are_taken() {
        let populated: Vec<_> = (0..2000).map(|n| n * 10..n * 10 + 5 + n % 2).collect();
        let staying: Vec<_> = (0..2000).map(|n| n * 10 + 8..n * 10 + 9).collect();
        let region = Region {
            range: 0..20_000,
            populated,
            staying,
            huge: Vec::new(),
        };
        assert_eq!(region.pieces().len(), MOST_PIECES);
    }

    #[test]
    fn what_two_lists_have_in_common() {
        assert_eq!(
            intersect(&[0..10, 20..30], &[5..22, 25..26]),
            [5..10, 20..22, 25..26]
        );
        assert!(intersect(&[0..10], &[10..20]).is_empty());
    }

    #[test]
    fn what_is_left_of_a_subtraction() {
        assert_eq!(subtract(&[0..10, 20..30], &[]), [0..10, 20..30]);
        assert_eq!(
            subtract(&[0..10, 20..30], &[0..2, 4..10, 22..30]),
            [2..4, 20..22]
        );
        assert!(subtract(&[0..10], &[0..10]).is_empty());
    }
}
