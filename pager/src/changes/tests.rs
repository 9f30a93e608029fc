use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

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
}

proptest! {
    /// One thread is held up between what it does and its report, while others make one change each time.
    #[test]
    fn one_report_that_is_late_changes_nothing(
        steps in proptest::collection::vec((0..2, 0..6u64, 0..6u64), 1..8),
        late in 0..8usize,
        until in 0..8usize,
    ) {
        let mut truth = Model::default();
        for page in 0..4 {
            truth.content.insert(page << 12, 100 + page);
            truth.registered.insert(page << 12);
        }
        let before = truth.clone();
        let mut reports: Vec<Vec<Change>> = Vec::new();
        for (kind, from, to) in steps {
            let (from, to) = (from << 12, to << 12);
            if !truth.registered.contains(&from) {
                continue;
            }
            // A program moves nothing to where it has something.
            let changes = if kind == 0 {
                vec![unmap(from)]
            } else if !truth.registered.contains(&to) {
                truth.registered.insert(to);
                moves(from, to).to_vec()
            } else {
                continue;
            };
            truth.registered.remove(&from);
            changes.iter().for_each(|change| truth.apply(change));
            reports.push(changes);
        }
        prop_assume!(!reports.is_empty());
        let late = late % reports.len();
        let held_up = reports.remove(late);
        // Of what is overtaken by two changes of the same pages there is more than one possible order.
        let touches = |changes: &[Change]| -> HashSet<u64> {
            let pages = (0..6u64).map(|page| page << 12);
            pages
                .filter(|page| changes.iter().any(|change| change.unmaps(*page) || change.leaves(*page) || change.arrives_at(*page)))
                .collect()
        };
        let until = (late + until).min(reports.len());
        let meanwhile = &reports[late..until];
        let common = |changes: &[Change]| !touches(changes).is_disjoint(&touches(&held_up));
        prop_assume!(meanwhile.iter().filter(|changes| common(changes)).count() <= 1);
        // Nobody else has what a move that has not come back has moved.
        let own = |page: &u64| held_up.iter().any(|change| change.arrives_at(*page));
        prop_assume!(!meanwhile.iter().any(|changes| touches(changes).iter().any(own)));
        reports.insert(until, held_up);

        let mut found = before;
        let registered = &truth.registered;
        let read: Vec<Change> = reports.concat();
        let order = in_order(&read, &mut |page| Some(registered.contains(&page))).unwrap();
        order.iter().for_each(|change| found.apply(change));
        prop_assert_eq!(&found.content, &truth.content, "{:?}", read);
    }
}
