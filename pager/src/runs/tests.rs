use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const PAGE: u64 = 4096;
const SPAN: u64 = 48;

/// The same map, page by page.
#[derive(Debug, Default)]
struct Plain(BTreeMap<u64, u64>);

#[derive(Debug, Clone)]
enum Step {
    Insert { page: u64, pages: u64, slot: u64 },
    Remove { page: u64, pages: u64 },
    Relocate { from: u64, to: u64, pages: u64 },
}

impl Plain {
    fn remove(&mut self, page: u64, pages: u64) -> Vec<(u64, u64)> {
        (page..page + pages)
            .filter_map(|page| Some((page, self.0.remove(&page)?)))
            .collect()
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Insert { page, pages, slot } => {
                for index in 0..pages {
                    self.0.insert(page + index, slot + index);
                }
            }
            Step::Remove { page, pages } => {
                self.remove(page, pages);
            }
            Step::Relocate { from, to, pages } => {
                let moved = self.remove(from, pages);
                self.remove(to, pages);
                for (page, slot) in moved {
                    self.0.insert(page - from + to, slot);
                }
            }
        }
    }
}

fn apply(map: &mut RunMap, step: &Step) {
    match *step {
        Step::Insert { page, pages, slot } => map.insert(Run {
            start: page * PAGE,
            end: (page + pages) * PAGE,
            slot,
        }),
        Step::Remove { page, pages } => {
            map.remove(page * PAGE..(page + pages) * PAGE);
        }
        Step::Relocate { from, to, pages } => {
            map.relocate(from * PAGE, to * PAGE, pages * PAGE);
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..SPAN, 0..12u64, 0..40u64).prop_map(|(page, pages, slot)| Step::Insert {
            page,
            pages,
            slot
        }),
        (0..SPAN, 0..12u64).prop_map(|(page, pages)| Step::Remove { page, pages }),
        (0..SPAN, 0..SPAN, 0..12u64)
            .prop_filter("mremap refuses overlapping ranges", |(from, to, pages)| {
                from + pages <= *to || to + pages <= *from
            })
            .prop_map(|(from, to, pages)| Step::Relocate { from, to, pages }),
    ];
    proptest::collection::vec(step, 0..40)
}

proptest! {
    #[test]
    fn agrees_with_a_map_of_single_pages(steps in steps(), window in (0..SPAN, 0..SPAN)) {
        let (mut map, mut plain) = (RunMap::new(PAGE), Plain::default());
        for step in &steps {
            apply(&mut map, step);
            plain.apply(step);
        }
        for page in 0..SPAN + 24 {
            prop_assert_eq!(map.get(page * PAGE), plain.0.get(&page).copied());
        }
        prop_assert_eq!(map.bytes(), plain.0.len() as u64 * PAGE);
        let runs: Vec<_> = map.iter().collect();
        for pair in runs.windows(2) {
            let [first, second] = pair else { unreachable!() };
            prop_assert!(first.end <= second.start);
            let follows = first.slot + (first.end - first.start) / PAGE;
            prop_assert!(first.end < second.start || follows != second.slot);
        }
        let (from, pages) = window;
        let range = from * PAGE..(from + pages) * PAGE;
        let inside: Vec<u64> = map
            .within(range.clone())
            .flat_map(|run| (run.start..run.end).step_by(PAGE as usize))
            .collect();
        let expected: Vec<u64> = plain
            .0
            .keys()
            .map(|page| page * PAGE)
            .filter(|address| range.contains(address))
            .collect();
        prop_assert_eq!(inside, expected);
    }
}

#[test]
fn neighbours_with_following_slots_are_one_run() {
    let mut map = RunMap::new(PAGE);
    let run = |start: u64, end: u64, slot| Run {
        start: start * PAGE,
        end: end * PAGE,
        slot,
    };
    map.insert(run(4, 6, 14));
    map.insert(run(0, 2, 10));
    map.insert(run(2, 4, 12));
    assert_eq!(map.iter().collect::<Vec<_>>(), [run(0, 6, 10)]);
    map.remove(2 * PAGE..3 * PAGE);
    assert_eq!(
        map.iter().collect::<Vec<_>>(),
        [run(0, 2, 10), run(3, 6, 13)]
    );
    assert_eq!(map.next(PAGE).unwrap(), run(1, 2, 11));
}
