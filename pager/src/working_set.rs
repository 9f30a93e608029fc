//! Which pages the last wakes needed.
//!
//! A page that is filled before the process runs does not fault, so whether it was needed again
//! cannot be seen. Therefore each page has a lease, counted in wakes:
//!
//! ```text
//!   fault -> lease of 2 wakes -> left out once -> fault    -> lease of 4, 8, ... 32 wakes
//!                                              -> no fault -> forgotten
//! ```
//!
//! What every wake needs costs one fault in thirty wakes or more, what was needed once is gone after a
//! few, unless it was much. A wake is never made slow for it: of the pages whose lease has ended, a small part is left
//! out at a time and the others wait for their turn, of those that were needed again and again a few at most. A page that
//! was written since the wake was needed: that shows at the next sleep and renews its lease.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::image::{ImageError, checksum};

/// Name of the file beside the image.
pub const WORKING_SET: &str = "working-set.img";

const MAGIC: u64 = u64::from_le_bytes(*b"PODMWS\n\0");
const VERSION: u64 = 1;
const STRONGEST: u32 = 5;
/// Of so many pages one is left out at a time, but always a few.
const LEFT_OUT_OF: usize = 128;
const LEFT_OUT: usize = 8;
/// Of the strongest leases so many: they are most likely needed again, and each of them costs a fault then.
const STRONGEST_LEFT_OUT: usize = 4;

/// A page of a process, by pid and address.
pub(crate) type PageOf = (i32, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lease {
    /// Length of the lease, as a power of two.
    strength: u32,
    /// Wakes that are left of it.
    left: u32,
    /// Position among the faults of the wake that brought it in.
    order: u32,
}

/// The pages to fill before a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkingSet {
    leases: BTreeMap<PageOf, Lease>,
    /// The pages that the next wake has to ask for.
    left_out: BTreeSet<PageOf>,
    page: u64,
    budget: usize,
}

impl WorkingSet {
    /// Knows nothing yet, and will never know more than `budget` pages of `page` bytes.
    pub(crate) fn new(page: u64, budget: usize) -> Self {
        Self {
            leases: BTreeMap::new(),
            left_out: BTreeSet::new(),
            page,
            budget,
        }
    }

    /// What to fill first in a wake, in the order of addresses.
    pub(crate) fn plan(&self) -> Vec<(i32, Range<u64>)> {
        let mut plan: Vec<(i32, Range<u64>)> = Vec::new();
        let filled = |page: &&PageOf| !self.left_out.contains(page);
        for &(pid, address) in self.leases.keys().filter(filled) {
            match plan.last_mut() {
                Some((last, range)) if *last == pid && range.end == address => {
                    range.end += self.page;
                }
                _ => plan.push((pid, address..address + self.page)),
            }
        }
        plan
    }

    /// All pages that are known to be needed, also those that the next wake is to ask for.
    pub(crate) fn pages(&self) -> impl Iterator<Item = PageOf> {
        self.leases.keys().copied()
    }

    /// Addresses of those of process `pid` in `range`, in order.
    pub(crate) fn within(&self, pid: i32, range: Range<u64>) -> Vec<u64> {
        let pages = self.leases.range((pid, range.start)..(pid, range.end));
        pages.map(|((_, address), _)| *address).collect()
    }

    /// Chooses the pages that the next wake has to ask for: weak leases first. What is in memory by then must not be among
    /// them, since nobody would see that it is needed.
    pub(crate) fn leave_out(&mut self) {
        let ended = self.leases.iter().filter(|(_, lease)| lease.left == 0);
        let mut ended: Vec<_> = ended
            .map(|(page, lease)| (lease.strength, lease.order, *page))
            .collect();
        ended.sort_unstable();
        let weak = ended.partition_point(|(strength, ..)| *strength < STRONGEST);
        let most = LEFT_OUT.max(self.leases.len() / LEFT_OUT_OF);
        ended.truncate(most.min(weak + STRONGEST_LEFT_OUT));
        self.left_out = ended.into_iter().map(|(_, _, page)| page).collect();
    }

    /// A wake is over in which these pages faulted, in this order.
    pub(crate) fn learn(&mut self, faults: &[PageOf]) {
        let mut faulted: BTreeMap<PageOf, u32> = BTreeMap::new();
        for (order, page) in (0..).zip(faults) {
            faulted.entry(*page).or_insert(order);
        }
        let left_out = std::mem::take(&mut self.left_out);
        self.leases.retain(|page, lease| {
            lease.left = lease.left.saturating_sub(1);
            faulted.contains_key(page) || !left_out.contains(page)
        });
        for (page, order) in faulted {
            let strength = match self.leases.get(&page) {
                Some(lease) => (lease.strength + 1).min(STRONGEST),
                None => 1,
            };
            let left = 1 << strength;
            self.leases.insert(
                page,
                Lease {
                    strength,
                    left,
                    order,
                },
            );
        }
        self.cut();
    }

    /// These pages were written since the wake.
    pub(crate) fn confirm(&mut self, written: impl Iterator<Item = PageOf>) {
        for page in written {
            if let Some(lease) = self.leases.get_mut(&page) {
                lease.left = lease.left.max(1 << lease.strength);
                self.left_out.remove(&page);
            }
        }
    }

    /// Drops what is over the budget: weak leases first, of those the late faults.
    fn cut(&mut self) {
        if self.leases.len() <= self.budget {
            return;
        }
        let mut ranked: Vec<_> = self
            .leases
            .iter()
            .map(|(page, lease)| (STRONGEST - lease.strength, lease.order, *page))
            .collect();
        ranked.sort_unstable();
        for (_, _, page) in ranked.drain(self.budget..) {
            self.leases.remove(&page);
        }
    }

    /// Writes it to `directory`, at once or not at all.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), ImageError> {
        let path = directory.join(WORKING_SET);
        let mut bytes = Vec::new();
        for number in [MAGIC, VERSION, self.page, self.leases.len() as u64] {
            bytes.extend(number.to_le_bytes());
        }
        for (&(pid, address), lease) in &self.leases {
            let packed = u64::from(lease.strength) << 48 | u64::from(lease.left) << 32;
            for number in [pid as u64, address, packed | u64::from(lease.order)] {
                bytes.extend(number.to_le_bytes());
            }
        }
        bytes.extend(checksum(&bytes).to_le_bytes());
        let temporary = path.with_extension("tmp");
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(&bytes))
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(ImageError::io("write", &path))
    }

    /// Reads what [`write`](Self::write) wrote. It is only advice: whoever cannot read it begins
    /// with an empty one.
    pub(crate) fn read(directory: &Path, page: u64, budget: usize) -> Result<Self, ImageError> {
        let path = directory.join(WORKING_SET);
        let bytes = fs::read(&path).map_err(ImageError::io("read", &path))?;
        let numbers: Vec<u64> = bytes
            .as_chunks()
            .0
            .iter()
            .map(|number| u64::from_le_bytes(*number))
            .collect();
        let sum = bytes.len().checked_sub(8).map(|at| checksum(&bytes[..at]));
        if sum.is_none() || sum != numbers.last().copied() {
            return Err(ImageError::Corrupt {
                path,
                what: "the working set".to_owned(),
            });
        }
        let [MAGIC, VERSION, found, _, rest @ .., _] = &numbers[..] else {
            return Err(ImageError::Foreign {
                path,
                reason: "another kind or version".to_owned(),
            });
        };
        let mut set = Self::new(page, budget);
        if *found != page {
            return Ok(set);
        }
        for &[pid, address, packed] in rest.as_chunks().0 {
            let lease = Lease {
                strength: ((packed >> 48) as u32).min(STRONGEST),
                left: (packed >> 32) as u32 & 0xffff,
                order: packed as u32,
            };
            set.leases.insert((pid as i32, address), lease);
        }
        set.cut();
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn planned(set: &WorkingSet, page: u64) -> bool {
        set.plan()
            .iter()
            .any(|(_, range)| range.contains(&(page * PAGE)))
    }

    /// Faults of a wake that needs `pages`: those that were not filled first.
    fn wake(set: &mut WorkingSet, pages: &[u64]) -> usize {
        set.leave_out();
        let faults: Vec<PageOf> = pages
            .iter()
            .filter(|page| !planned(set, **page))
            .map(|page| (1, page * PAGE))
            .collect();
        set.learn(&faults);
        faults.len()
    }

    #[test]
    fn what_every_wake_needs_faults_ever_more_rarely() {
        let mut set = WorkingSet::new(PAGE, 1000);
        let pages: Vec<u64> = (0..100).collect();
        assert_eq!(wake(&mut set, &pages), 100);
        assert_eq!(wake(&mut set, &pages), 0);
        for _ in 0..200 {
            wake(&mut set, &pages);
        }
        let later: Vec<usize> = (0..100).map(|_| wake(&mut set, &pages)).collect();
        let sum: usize = later.iter().sum();
        assert!(sum < 100 * 4, "{sum} faults in 100 wakes of 100 pages");
        assert!(later.iter().all(|faults| *faults <= STRONGEST_LEFT_OUT));
    }

    #[test]
    fn what_was_needed_once_is_forgotten() {
        let mut set = WorkingSet::new(PAGE, 1000);
        wake(&mut set, &[1, 2, 3]);
        assert!(planned(&set, 2));
        for _ in 0..5 {
            wake(&mut set, &[1]);
        }
        assert!(!planned(&set, 2));
        assert!(planned(&set, 1));
        assert_eq!(set.leases.len(), 1);
    }

    #[test]
    fn written_pages_are_not_left_out() {
        let mut set = WorkingSet::new(PAGE, 1000);
        wake(&mut set, &[7]);
        for _ in 0..20 {
            wake(&mut set, &[]);
            set.confirm([(1, 7 * PAGE)].into_iter());
            assert!(planned(&set, 7));
        }
    }

    #[test]
    fn what_was_in_memory_all_the_time_is_not_forgotten() {
        let mut set = WorkingSet::new(PAGE, 1000);
        let pages: Vec<u64> = (0..100).collect();
        wake(&mut set, &pages);
        for _ in 0..50 {
            set.leave_out();
            let filled = set.plan();
            // Written between the choice and the wake: it is filled too, and no other page is left out instead.
            let written: Vec<_> = set.left_out.iter().copied().take(4).collect();
            set.confirm(written.iter().copied());
            assert!(
                written
                    .iter()
                    .all(|(_, address)| planned(&set, address / PAGE))
            );
            assert!(filled.iter().all(|(_, range)| {
                let mut pages = range.clone().step_by(PAGE as usize);
                pages.all(|page| planned(&set, page / PAGE))
            }));
            let asked: Vec<_> = set.left_out.iter().copied().collect();
            set.learn(&asked);
        }
        assert_eq!(set.leases.len(), 100);
    }

    #[test]
    fn the_budget_keeps_the_earliest_of_the_new_and_all_of_the_strong() {
        let mut set = WorkingSet::new(PAGE, 10);
        for _ in 0..8 {
            wake(&mut set, &[90, 91]);
        }
        let many: Vec<u64> = (0..50).rev().chain([90, 91]).collect();
        wake(&mut set, &many);
        assert_eq!(set.leases.len(), 10);
        assert!(set.leases.contains_key(&(1, 90 * PAGE)));
        assert!(set.leases.contains_key(&(1, 49 * PAGE)));
        assert!(!set.leases.contains_key(&(1, 0)));
    }

    #[test]
    fn neighbours_are_planned_as_one_range() {
        let mut set = WorkingSet::new(PAGE, 10);
        set.learn(&[(1, 2 * PAGE), (1, PAGE), (2, 3 * PAGE), (1, 5 * PAGE)]);
        let plan = set.plan();
        let expected = [
            (1, PAGE..3 * PAGE),
            (1, 5 * PAGE..6 * PAGE),
            (2, 3 * PAGE..4 * PAGE),
        ];
        assert_eq!(plan, expected);
    }

    #[test]
    fn it_is_read_as_it_was_written_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let mut set = WorkingSet::new(PAGE, 10);
        wake(&mut set, &[1, 2, 9]);
        set.write(dir.path()).unwrap();
        assert_eq!(WorkingSet::read(dir.path(), PAGE, 10).unwrap(), set);
        let path = dir.path().join(WORKING_SET);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            assert!(WorkingSet::read(dir.path(), PAGE, 10).is_err(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(
                WorkingSet::read(dir.path(), PAGE, 10).is_err(),
                "cut at {at}"
            );
        }
    }
}
