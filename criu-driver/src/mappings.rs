//! What a process has mapped, and how that differs from before.

/// One mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub start: u64,
    pub end: u64,
    /// As for `mprotect`.
    pub protection: u64,
}

/// A change that makes a process's mappings what they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Unmap {
        start: u64,
        length: u64,
    },
    Protect {
        start: u64,
        length: u64,
        protection: u64,
    },
}

/// Parses a `maps` file.
pub(crate) fn parse(maps: &str) -> Vec<Mapping> {
    maps.lines()
        .filter_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let bits = [
                ('r', libc::PROT_READ),
                ('w', libc::PROT_WRITE),
                ('x', libc::PROT_EXEC),
            ];
            let protection = rest.chars().zip(bits).filter(|(c, (name, _))| c == name);
            Some(Mapping {
                start: u64::from_str_radix(start, 16).ok()?,
                end: u64::from_str_radix(end, 16).ok()?,
                protection: protection
                    .map(|(_, (_, bit))| u64::from(bit.cast_unsigned()))
                    .sum(),
            })
        })
        .collect()
}

/// The first mapping with code in it. CRIU writes there to have a task run system calls
/// (`get_exec_start` in `criu/parasite-syscall.c`).
pub(crate) fn first_code(mappings: &[Mapping]) -> Option<&Mapping> {
    let executable = u64::from(libc::PROT_EXEC.cast_unsigned());
    mappings
        .iter()
        .find(|mapping| mapping.protection & executable != 0)
}

/// What makes `after` like `before`. Both are sorted, as the kernel lists them. Mappings that are
/// missing do not come back.
pub(crate) fn undo(before: &[Mapping], after: &[Mapping]) -> Vec<Change> {
    let mut changes = Vec::new();
    for mapping in after {
        let mut at = mapping.start;
        let old = before
            .iter()
            .filter(|old| old.end > mapping.start && old.start < mapping.end);
        for old in old {
            if at < old.start {
                changes.push(unmap(at, old.start));
            }
            let (start, end) = (at.max(old.start), mapping.end.min(old.end));
            if old.protection != mapping.protection {
                changes.push(Change::Protect {
                    start,
                    length: end - start,
                    protection: old.protection,
                });
            }
            at = end;
        }
        if at < mapping.end {
            changes.push(unmap(at, mapping.end));
        }
    }
    changes
}

fn unmap(start: u64, end: u64) -> Change {
    Change::Unmap {
        start,
        length: end - start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
1000-3000 r--p 00000000 08:01 42    /usr/bin/with space\n\
3000-5000 r-xp 00002000 08:01 42    /usr/bin/with space\n\
8000-9000 ---p 00000000 00:00 0\n\
9000-b000 rw-p 00000000 00:00 0     [heap]\n";

    #[test]
    fn a_file_is_parsed() {
        let mappings = parse(MAPS);
        let protections: Vec<_> = mappings.iter().map(|m| m.protection).collect();
        assert_eq!(protections, [1, 5, 0, 3]);
        assert_eq!(first_code(&mappings).map(|m| m.start), Some(0x3000));
        assert_eq!(undo(&mappings, &mappings), []);
    }

    #[test]
    fn what_is_new_goes() {
        let before = parse(MAPS);
        let mut after = before.clone();
        after.insert(
            2,
            Mapping {
                start: 0x5000,
                end: 0x7000,
                protection: 7,
            },
        );
        assert_eq!(undo(&before, &after), [unmap(0x5000, 0x7000)]);
        // Merged by the kernel with what was there, on both sides.
        let merged = [Mapping {
            start: 0x0,
            end: 0x6000,
            protection: 5,
        }];
        let protect = Change::Protect {
            start: 0x1000,
            length: 0x2000,
            protection: 1,
        };
        let expected = [unmap(0, 0x1000), protect, unmap(0x5000, 0x6000)];
        assert_eq!(undo(&before[..2], &merged), expected);
    }

    #[test]
    fn what_can_be_read_only_now_is_closed_again() {
        let before = parse(MAPS);
        let mut after = before.clone();
        after[2].protection = 1;
        let protect = Change::Protect {
            start: 0x8000,
            length: 0x1000,
            protection: 0,
        };
        assert_eq!(undo(&before, &after), [protect]);
        // And split in two.
        let start = 0x8800;
        after[2].end = start;
        after.insert(
            3,
            Mapping {
                start,
                end: 0x9000,
                protection: 0,
            },
        );
        assert!(matches!(
            undo(&before, &after)[..],
            [Change::Protect { length: 0x800, .. }]
        ));
    }
}
