//! Pages that the kernel reads when a thread ends: its list of robust locks, `set_robust_list(2)`.
//!
//! At that moment the kernel waits for no page of a userfaultfd. With one of these missing, nobody
//! would be told that the holder of a lock has died, and who waits for it would wait for ever.
//!
//! ```text
//!   struct robust_list_head       struct robust_list, in each lock that is held
//!     next  ------------------->    next  -----> ... -----> the head again
//!     offset of the lock's word     (the word)
//!     a lock being taken or let go
//! ```

use std::ops::Range;

use podmotion_inject::Process;

use crate::sys::{page_size, robust};

/// The kernel looks at no more (`ROBUST_LIST_LIMIT`).
const MOST: usize = 2048;

/// The pages of all threads' lists, in order and apart.
pub(super) fn pages_of_locks(process: &Process) -> Vec<Range<u64>> {
    let mut pages = Vec::new();
    for thread in process.threads() {
        // None of one that has ended: nobody waits for it.
        if let Ok(head) = robust::list(thread) {
            follow(head, &mut pages, |address, words| {
                let mut bytes = vec![0; words.len() * 8];
                let there = process.read(address, &mut bytes).is_ok();
                for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
                    *word = bytes.try_into().map_or(0, u64::from_ne_bytes);
                }
                there
            });
        }
    }
    merged(pages)
}

/// Goes through one list as the kernel would: up to what cannot be read.
fn follow(head: u64, pages: &mut Vec<Range<u64>>, read: impl Fn(u64, &mut [u64]) -> bool) {
    if head == 0 {
        return;
    }
    keep(head, 24, pages);
    let mut fields = [0; 3];
    if !read(head, &mut fields) {
        return;
    }
    let [mut next, offset, pending] = fields;
    // The lowest bit says of what kind the lock is.
    let entry = |pointer: u64| pointer & !1;
    for _ in 0..MOST {
        if entry(next) == head || entry(next) == 0 {
            break;
        }
        let mut following = [0];
        keep(entry(next), 8, pages);
        keep(entry(next).wrapping_add(offset), 4, pages);
        if !read(entry(next), &mut following) {
            break;
        }
        next = following[0];
    }
    if entry(pending) != 0 {
        keep(entry(pending).wrapping_add(offset), 4, pages);
    }
}

fn keep(address: u64, bytes: u64, pages: &mut Vec<Range<u64>>) {
    let page = page_size();
    let end = address.saturating_add(bytes).saturating_add(page - 1) / page * page;
    pages.push(address / page * page..end);
}

/// The same pages, in order and apart.
pub(super) fn merged(mut pages: Vec<Range<u64>>) -> Vec<Range<u64>> {
    pages.sort_unstable_by_key(|range| range.start);
    let mut apart: Vec<Range<u64>> = Vec::new();
    for range in pages {
        match apart.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => apart.push(range),
        }
    }
    apart
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn pages(memory: &[(u64, u64)], head: u64) -> Vec<u64> {
        let memory: BTreeMap<_, _> = memory.iter().copied().collect();
        let mut found = Vec::new();
        follow(head, &mut found, |address, words| {
            words
                .iter_mut()
                .zip((address..).step_by(8))
                .all(|(word, at)| {
                    memory.get(&at).is_some_and(|value| {
                        *word = *value;
                        true
                    })
                })
        });
        merged(found)
            .into_iter()
            .flat_map(|range| range.step_by(page_size() as usize))
            .map(|address| address / page_size())
            .collect()
    }

    #[test]
    fn a_list_is_followed_to_its_end() {
        let page = page_size();
        let (head, first, second) = (10 * page, 20 * page, 30 * page);
        let offset = 0u64.wrapping_sub(32);
        let fields = |next, pending| [(head, next), (head + 8, offset), (head + 16, pending)];

        assert_eq!(pages(&fields(head, 0), head), [10], "no lock is held");
        let two = [(first, second | 1), (second, head)];
        assert_eq!(
            pages(&[&fields(first, 0)[..], &two].concat(), head),
            [10, 19, 20, 29, 30],
            "each with its word, which lies before it"
        );
        assert_eq!(
            pages(&[&fields(first, 0)[..], &[(first, first)]].concat(), head),
            [10, 19, 20],
            "one that never ends"
        );
        assert_eq!(pages(&fields(first, 0), head), [10, 19, 20], "unreadable");
        assert_eq!(pages(&fields(head, first + 64), head), [10, 20], "taken");
        assert_eq!(pages(&[], head), [10]);
        assert_eq!(pages(&[], 0), [0; 0], "no list");
    }
}
