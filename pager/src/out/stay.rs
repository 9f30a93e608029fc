//! What stays in memory although it could leave: of a large container a small part of what its last wakes have needed.
//!
//! It need not come back then, and coming back is what a wake of a large container takes longest for. Each run that stays makes
//! one more piece of what is taken away, so there is a limit to them.

use std::ops::Range;

use super::find::{Leaving, intersect, subtract};
use crate::stats::StayPolicy;
use crate::sys::page_size;

/// Runs that stay at most. Where the kernel takes pieces one by one (before Linux 6.13), so many take some ten milliseconds.
const MOST_RUNS: usize = 512;

/// Leaves some of what is `needed` where it is, as much as the policy allows. Returns how many bytes that are. What is
/// needed is asked for only where something may stay.
pub(super) fn leave_some(
    leaving: &mut [Leaving],
    needed: impl FnOnce() -> Vec<(i32, Range<u64>)>,
    policy: StayPolicy,
) -> u64 {
    let populated = |process: &Leaving| {
        let runs = process.regions.iter().flat_map(|region| &region.populated);
        runs.map(|run| run.end - run.start).sum::<u64>() + process.missing.bytes()
    };
    let total = leaving.iter().map(populated).sum();
    let mut allowed = policy.allowance(total);
    if allowed == 0 {
        return 0;
    }
    let mut left = 0;
    for (pid, range) in longest_first(needed()) {
        let Some(process) = leaving.iter_mut().find(|process| process.pid == pid) else {
            continue;
        };
        let end = range
            .end
            .min(range.start + allowed / page_size() * page_size());
        let stays = process.leave(&(range.start..end));
        allowed -= stays;
        left += stays;
    }
    left
}

/// What of `plan`, which has all that was left in place, is missing.
pub(super) fn without_left(
    plan: Vec<(i32, Range<u64>)>,
    leaving: &[Leaving],
) -> Vec<(i32, Range<u64>)> {
    if leaving.iter().all(|process| process.left.is_empty()) {
        return plan;
    }
    let (mut missing, mut rest) = (Vec::new(), plan);
    for process in leaving {
        let own = rest.extract_if(.., |(pid, _)| *pid == process.pid);
        let own: Vec<_> = own.map(|(_, range)| range).collect();
        let mut left = process.left.clone();
        left.sort_unstable_by_key(|range| range.start);
        let own = subtract(&own, &left).into_iter();
        missing.extend(own.map(|range| (process.pid, range)));
    }
    missing.append(&mut rest);
    missing
}

/// Of the longest the fewest are needed.
fn longest_first(mut runs: Vec<(i32, Range<u64>)>) -> Vec<(i32, Range<u64>)> {
    runs.sort_by_key(|(_, range)| std::cmp::Reverse(range.end - range.start));
    runs.truncate(MOST_RUNS);
    runs
}

impl Leaving {
    /// Leaves in place what of `range` has content. Returns how many bytes that are.
    fn leave(&mut self, range: &Range<u64>) -> u64 {
        let mut bytes = 0;
        let from = self
            .regions
            .partition_point(|region| region.range.end <= range.start);
        let regions = self.regions[from..].iter_mut();
        for region in regions.take_while(|region| region.range.start < range.end) {
            let runs = &mut region.populated;
            let touched = runs.partition_point(|run| run.end <= range.start)
                ..runs.partition_point(|run| run.start < range.end);
            let stays = intersect(&runs[touched.clone()], std::slice::from_ref(range));
            let leaves = subtract(&runs[touched.clone()], &stays);
            runs.splice(touched, leaves);
            bytes += stays.iter().map(|run| run.end - run.start).sum::<u64>();
            region.staying.extend(stays.iter().cloned());
            region.staying.sort_unstable_by_key(|run| run.start);
            self.left.extend(stays);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::super::find::Region;
    use super::*;
    use crate::runs::RunMap;

    fn pages(first: u64, end: u64) -> Range<u64> {
        first * page_size()..end * page_size()
    }

    fn process(populated: &[Range<u64>]) -> Leaving {
        Leaving {
            pid: 1,
            regions: vec![Region {
                range: pages(0, 1000),
                populated: populated.to_vec(),
                staying: vec![pages(500, 501)],
                huge: Vec::new(),
            }],
            missing: RunMap::new(page_size()),
            known: RunMap::new(page_size()),
            same: RunMap::new(page_size()),
            ahead: Vec::new(),
            uffd: None,
            left: Vec::new(),
        }
    }

    /// One page of `one_in`.
    fn policy(one_in: u64) -> StayPolicy {
        StayPolicy { from: 0, one_in }
    }

    #[test]
    fn the_longest_runs_stay_until_it_is_enough() {
        let mut leaving = [process(&[pages(0, 100), pages(200, 400)])];
        let needed = [
            (1, pages(10, 20)),
            (1, pages(90, 220)),
            (1, pages(300, 302)),
        ];
        // Of 300 pages 30: first the longest, of whose 30 first ones 10 have content, and then the next.
        let left = leave_some(&mut leaving, || needed.to_vec(), policy(10));
        assert_eq!(left, 22 * page_size());
        let [process] = leaving;
        assert_eq!(
            process.left,
            [pages(90, 100), pages(10, 20), pages(300, 302)]
        );
        let region = &process.regions[0];
        let leaves = [
            pages(0, 10),
            pages(20, 90),
            pages(200, 300),
            pages(302, 400),
        ];
        assert_eq!(region.populated, leaves);
        let stays = [
            pages(10, 20),
            pages(90, 100),
            pages(300, 302),
            pages(500, 501),
        ];
        assert_eq!(region.staying, stays);
    }

    #[test]
    fn what_stays_is_not_filled() {
        let mut leaving = [process(&[pages(0, 100)])];
        let needed = [(1, pages(10, 20)), (1, pages(30, 60)), (2, pages(10, 20))];
        assert_eq!(without_left(needed.to_vec(), &leaving), needed);
        leave_some(&mut leaving, || needed.to_vec(), policy(3));
        let missing = without_left(needed.to_vec(), &leaving);
        assert_eq!(missing, [(1, pages(13, 20)), (2, pages(10, 20))]);
    }

    #[test]
    fn what_other_processes_and_small_ones_need_does_not_stay() {
        let all = [pages(0, 300)];
        let stays = |needed: &[(i32, Range<u64>)], policy| {
            leave_some(&mut [process(&all)], || needed.to_vec(), policy) / page_size()
        };
        assert_eq!(stays(&[(1, pages(0, 1))], policy(10)), 1);
        let many: Vec<_> = (0..300).map(|page| (1, pages(page, page + 1))).collect();
        assert_eq!(stays(&many, policy(1)), 300);
        assert_eq!(stays(&[(2, pages(0, 8))], policy(10)), 0);
        assert_eq!(stays(&[(1, pages(0, 300))], policy(10)), 30);
        let from = |pages: u64| StayPolicy {
            from: pages * page_size(),
            one_in: 10,
        };
        assert_eq!(stays(&[(1, pages(0, 300))], from(300)), 30);
        assert_eq!(stays(&[(1, pages(0, 300))], from(301)), 0);
    }
}
