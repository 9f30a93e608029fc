use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::runs::{Run, RunMap};

const A: u64 = 0x1000;
const B: u64 = 0x2000;
const C: u64 = 0x3000;
const D: u64 = 0x4000;

fn remap(from: u64, to: u64) -> Change {
    let len = 0x1000;
    Change::Remap { from, to, len }
}

fn unmap(page: u64) -> Change {
    Change::Unmap(page..page + 0x1000)
}

/// Both reports of a move.
fn moves(from: u64, to: u64) -> [Change; 2] {
    [remap(from, to), unmap(from)]
}

fn ordered(read: &[Change], registered: &[u64]) -> Vec<Change> {
    in_order(read, &mut |page| Some(registered.contains(&page))).unwrap()
}

#[test]
fn an_unmapping_that_was_overtaken_comes_first() {
    let [moved, gone] = moves(B, A);
    let read = [moved.clone(), unmap(A), gone.clone()];
    assert_eq!(ordered(&read, &[A]), [unmap(A), moved, gone]);
    assert_eq!(ordered(&read, &[]), read, "unmapped by who moved there");
}

#[test]
fn a_move_that_was_overtaken_comes_first_with_both_its_reports() {
    let ([first, first_gone], [second, second_gone]) = (moves(A, C), moves(B, A));
    let right = [
        first.clone(),
        first_gone.clone(),
        second.clone(),
        second_gone.clone(),
    ];
    for read in [
        [&second, &first, &first_gone, &second_gone],
        [&second, &second_gone, &first, &first_gone],
        [&first, &second, &first_gone, &second_gone],
    ] {
        let read = read.map(Clone::clone);
        assert_eq!(ordered(&read, &[A, C]), right, "{read:?}");
    }
    let on = [moves(B, A), moves(A, C)].concat();
    assert_eq!(ordered(&on, &[C]), on, "from B to A, and on to C");
}

#[test]
fn what_was_overtaken_twice_comes_before_both() {
    let read = [moves(C, B), moves(B, A), [unmap(A), unmap(B)]].concat();
    // Two that had been at A and B were unmapped before.
    let found = ordered(&read, &[A]);
    let at = |change: &Change| found.iter().position(|other| other == change);
    assert!(at(&unmap(A)) < at(&remap(B, A)), "{found:?}");
}

#[test]
fn addresses_that_stay_mapped_after_a_move_are_no_sign_of_another_order() {
    // With MREMAP_DONTUNMAP there is no second report.
    let read = [remap(B, A), unmap(B), remap(A, C)];
    assert_eq!(ordered(&read, &[A, C]), read);
}

#[test]
fn with_another_change_on_its_way_nothing_is_put_in_order() {
    let read = [remap(B, A), unmap(A)];
    assert_eq!(in_order(&read, &mut |_| None), None);
    let read = [remap(B, A), unmap(D)];
    assert_eq!(ordered(&read, &[]), read, "nobody is asked");
}

/// A program's address space: what is at each page, and which pages are registered.
#[derive(Debug, Clone, Default)]
struct Model {
    content: HashMap<u64, u64>,
    registered: HashSet<u64>,
}

impl Model {
    /// Four pages of six.
    fn new() -> Self {
        let pages = (0..4).map(|page| page << 12);
        Self {
            content: pages.clone().map(|page| (page, page + 1)).collect(),
            registered: pages.collect(),
        }
    }

    /// What is known of the content after a change.
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Remap { from, to, .. } => {
                let content = self.content.remove(from);
                self.content.remove(to);
                content.map(|content| self.content.insert(*to, content));
            }
            Change::Unmap(range) | Change::Remove(range) | Change::Withdraw(range) => {
                self.content.remove(&range.start);
            }
            Change::Fork { .. } => {}
        }
    }

    /// A call of the program, and what is reported of it. None for one that a program does not make.
    fn call(&mut self, kind: u8, from: u64, to: u64) -> Option<Vec<Change>> {
        let there = self.registered.contains(&to);
        let reports = match kind {
            0 => vec![unmap(from)],
            1 if !there => moves(from, to).to_vec(),
            2 if there && from != to => [&[unmap(to)], &moves(from, to)[..]].concat(),
            _ => return None,
        };
        if !self.registered.remove(&from) {
            return None;
        }
        if kind > 0 {
            self.registered.insert(to);
        }
        reports.iter().for_each(|change| self.apply(change));
        Some(reports)
    }
}

/// Pages that a call is about.
fn touched(reports: &[Change]) -> HashSet<u64> {
    let by = |change: &Change, page| {
        change.unmaps(page) || change.leaves(page) || change.arrives_at(page)
    };
    let pages = (0..6).map(|page| page << 12);
    pages
        .filter(|page| reports.iter().any(|change| by(change, *page)))
        .collect()
}

/// Calls, with the states before each and at the end.
fn calls(steps: &[(u8, u64, u64)]) -> (Vec<Vec<Change>>, Vec<Model>) {
    let mut now = Model::new();
    let (mut calls, mut states) = (Vec::new(), vec![now.clone()]);
    for (kind, from, to) in steps {
        if let Some(reports) = now.call(*kind, from << 12, to << 12) {
            calls.push(reports);
            states.push(now.clone());
        }
    }
    (calls, states)
}

/// Reports in the order in which they are read: of call `late` they come after those of call `until`, all of them or
/// the last. None for what is not to be known: of what is overtaken by two changes of the same pages there is more than
/// one order that is possible.
fn late(
    calls: &[Vec<Change>],
    late: usize,
    until: usize,
    all: bool,
) -> Option<Vec<(usize, Change)>> {
    let own = touched(calls.get(late)?);
    let meanwhile = calls.get(late + 1..=until)?;
    let common = meanwhile
        .iter()
        .filter(|reports| !touched(reports).is_disjoint(&own));
    // And what a call that has not come back has moved nobody else has.
    let arrived = |page: &u64| calls[late].iter().any(|change| change.arrives_at(*page));
    if common.count() > 1
        || meanwhile
            .iter()
            .any(|reports| touched(reports).iter().any(arrived))
    {
        return None;
    }
    let mut read: Vec<(usize, Change)> = Vec::new();
    let mut held_up = Vec::new();
    for (number, reports) in calls.iter().enumerate() {
        let at_once = if number != late {
            reports.len()
        } else if all {
            0
        } else {
            reports.len() - 1
        };
        let (now, later) = reports.split_at(at_once);
        read.extend(now.iter().map(|change| (number, change.clone())));
        held_up.extend(later.iter().map(|change| (number, change.clone())));
        if number == until {
            read.append(&mut held_up);
        }
    }
    Some(read)
}

const CHILD: Change = Change::Fork { child: 7 };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// One thread is held up between what it does and its report, or one of them.
    #[test]
    fn one_report_that_is_late_changes_nothing(
        steps in proptest::collection::vec((0..3u8, 0..6u64, 0..6u64), 4..10),
        which in 0..10usize,
        until in 0..10usize,
        all in any::<bool>(),
        forked in (0..10usize, 0..10usize),
    ) {
        let (calls, states) = calls(&steps);
        let which = which % calls.len().max(1);
        let until = (which + until % 4).min(calls.len().saturating_sub(1));
        let Some(mut read) = late(&calls, which, until, all) else {
            return Ok(());
        };
        // Before that call, and told of before one that comes as soon or later.
        let fork = forked.0 % (calls.len() + 1);
        let told = fork + forked.1 % 2;
        let at = read.iter().position(|(number, _)| *number >= told).unwrap_or(read.len());
        read.insert(at, (told, CHILD));

        let truth = &states[calls.len()];
        let read: Vec<Change> = read.into_iter().map(|(_, change)| change).collect();
        let order = in_order(&read, &mut |page| Some(truth.registered.contains(&page))).unwrap();
        let mut found = Model::new();
        order.iter().for_each(|change| found.apply(change));
        prop_assert_eq!(&found.content, &truth.content, "{:?}", read);

        let born = &states[fork];
        let mut child = Model::new();
        let mut missing = RunMap::new(0x1000);
        for page in child.content.keys() {
            missing.insert(Run { start: *page, end: page + 0x1000, slot: *page });
        }
        let mut was_registered = |page| Ok::<_, ()>(born.registered.contains(&page));
        let has = inherited(7, &order, &missing, &mut was_registered).unwrap();
        order.iter().zip(has).filter(|(_, has)| *has).for_each(|(change, _)| child.apply(change));
        // What is known of addresses that are not there does no harm.
        child.content.retain(|page, _| born.registered.contains(page));
        prop_assert_eq!(&child.content, &born.content, "{:?}", read);
    }
}
