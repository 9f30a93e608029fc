//! Which mappings can leave: the decision for each, from `/proc/PID/smaps`.
//!
//! What leaves is private anonymous memory: heap, stacks, anonymous mappings. The table says what
//! stays; whatever is not known to be safe stays, which costs memory and nothing else.
//!
//! | stays | why |
//! |---|---|
//! | has an inode | private pages of file mappings are left for a later version |
//! | `sh` | shared memory has other users |
//! | `lo` | locked: the program asked for it, and `MADV_DONTNEED` refuses |
//! | `io` `pf` `mm` `ht` | no pages of the ordinary kind |
//! | `um` `uw` `ui` | the program, or somebody, already uses a userfaultfd there; `um` is ours when memory is still missing from the last sleep |
//! | `dc` `wf` | not what it is after a fork, which a child's descriptor does not say; also how libraries mark memory that a device writes to |
//! | `sl` | sealed: `MADV_DONTNEED` refuses where it is read-only |
//! | `ss` `dp` | shadow stacks, and pages that the kernel may drop |
//! | not readable | its content cannot be read without force |
//! | special names | `[vdso]`, `[vvar]`, `[vsyscall]` and what else the kernel names; not `[heap]`, `[stack]` and `[anon:...]` |
//! | no anonymous page | nothing to take: it is not even registered |
//!
//! Pages that are shared copy-on-write with another process (fork) are private too, but stay: each
//! process would get a copy of its own back, and memory could be more after a sleep than before.

use std::fs;
use std::io;
use std::ops::Range;

/// A mapping whose pages can leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Movable {
    /// Its addresses.
    pub(crate) range: Range<u64>,
    /// Some of its pages may be shared with another process.
    pub(crate) shared: bool,
    /// It is registered with a userfaultfd already: ours, or it stays.
    pub(crate) armed: bool,
}

const STAYS: [&str; 13] = [
    "sh", "lo", "io", "pf", "mm", "ht", "uw", "ui", "dc", "wf", "sl", "ss", "dp",
];
const ARMED: &str = "um";

/// The mappings of process `pid` that can leave, in order. An I/O error when the process is gone,
/// `InvalidData` when its mappings cannot be understood.
pub(crate) fn movable(pid: i32) -> io::Result<Vec<Movable>> {
    parse(&fs::read_to_string(format!("/proc/{pid}/smaps"))?)
        .map_err(|line| io::Error::new(io::ErrorKind::InvalidData, format!("line {line:?}")))
}

/// What process `pid` has that keeps its memory where it is: a device or the kernel writes to pages
/// by their frames, whatever is mapped later. None when there is nothing.
pub(crate) fn pinned(pid: i32) -> io::Result<Option<String>> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It can have been closed, by a thread that is not stopped yet.
        let Ok(target) = fs::read_link(entry?.path()) else {
            continue;
        };
        let target = target.to_string_lossy();
        let pins = [
            "anon_inode:[io_uring]",
            "/dev/infiniband/",
            "/dev/vfio/",
            "anon_inode:[vfio",
        ];
        if pins.into_iter().any(|pin| target.starts_with(pin)) {
            return Ok(Some(target.into_owned()));
        }
    }
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(maps
        .contains("/[aio] (deleted)")
        .then(|| "[aio]".to_owned()))
}

/// What is known of a mapping before its flags, the last line, are read.
#[derive(Default)]
struct Candidate {
    range: Range<u64>,
    plain: bool,
    anonymous: u64,
    shared: u64,
}

fn parse(smaps: &str) -> Result<Vec<Movable>, String> {
    let mut found = Vec::new();
    let mut current = Candidate::default();
    for line in smaps.lines() {
        let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match key.strip_suffix(':') {
            None => current = header(key, value).ok_or_else(|| line.to_owned())?,
            Some("Anonymous") => current.anonymous = kilobytes(value)?,
            Some("Shared_Clean" | "Shared_Dirty" | "KSM") => current.shared += kilobytes(value)?,
            Some("Swap") => current.anonymous += kilobytes(value)?,
            Some("VmFlags") => {
                let has = |wanted: &str| value.split_ascii_whitespace().any(|flag| flag == wanted);
                let stays = STAYS.into_iter().any(has);
                if current.plain && has("rd") && !stays && current.anonymous > 0 {
                    found.push(Movable {
                        range: current.range.clone(),
                        shared: current.shared > 0,
                        armed: has(ARMED),
                    });
                }
            }
            Some(_) => {}
        }
    }
    Ok(found)
}

/// `7f00-7f10`, then `rw-p 00000000 00:00 0   [heap]`.
fn header(range: &str, rest: &str) -> Option<Candidate> {
    let (start, end) = range.split_once('-')?;
    let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let (permissions, inode) = (fields.next()?, fields.nth(2)?);
    let name = fields.next().unwrap_or("");
    let named = name.is_empty()
        || matches!(name, "[heap]" | "[stack]")
        || name.starts_with("[anon:")
        || name.starts_with("[stack:");
    Some(Candidate {
        range,
        plain: named && inode == "0" && permissions.ends_with('p'),
        ..Candidate::default()
    })
}

fn kilobytes(value: &str) -> Result<u64, String> {
    value
        .trim()
        .strip_suffix(" kB")
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mapping with 8 kB of anonymous memory.
    fn mapping(range: &str, permissions: &str, inode: u32, name: &str, flags: &str) -> String {
        format!(
            "{range} {permissions} 00000000 00:00 {inode}    {name}\n\
             Size:                132 kB\nAnonymous:             8 kB\nSwap:                  0 kB\n\
             Shared_Dirty:          0 kB\nVmFlags: {flags} \n"
        )
    }

    fn leaves(permissions: &str, inode: u32, name: &str, flags: &str) -> bool {
        let smaps = mapping("7f0000-7f2000", permissions, inode, name, flags);
        !parse(&smaps).unwrap().is_empty()
    }

    #[test]
    fn private_anonymous_memory_leaves() {
        for name in ["", "[heap]", "[stack]", "[anon:arena 1]"] {
            assert!(leaves("rw-p", 0, name, "rd wr mr mw me ac sd"), "{name}");
        }
        assert!(leaves("r--p", 0, "", "rd mr mw me ac"));
        assert!(leaves("rw-p", 0, "[stack]", "rd wr mr mw me gd ac"));
    }

    #[test]
    fn everything_else_stays() {
        assert!(!leaves("rw-p", 77, "/lib/libc.so.6", "rd wr mr mw me ac"));
        assert!(!leaves("rw-s", 0, "", "rd wr sh mr mw me ms"));
        assert!(!leaves("---p", 0, "", "mr mw me"));
        for name in [
            "[vdso]",
            "[vvar]",
            "[vvar_vclock]",
            "[vsyscall]",
            "[uprobes]",
        ] {
            assert!(!leaves("r-xp", 0, name, "rd ex mr mw me"), "{name}");
        }
        for flag in STAYS {
            assert!(
                !leaves("rw-p", 0, "", &format!("rd wr mr {flag} ac")),
                "{flag}"
            );
        }
    }

    #[test]
    fn a_mapping_without_pages_of_its_own_stays() {
        let smaps = mapping("1000-2000", "rw-p", 0, "", "rd wr").replace(" 8 kB", " 0 kB");
        assert!(parse(&smaps).unwrap().is_empty());
    }

    #[test]
    fn shared_pages_are_noticed() {
        let smaps = mapping("1000-2000", "rw-p", 0, "", "rd wr")
            .replace("Shared_Dirty:          0", "Shared_Dirty:          4");
        assert!(parse(&smaps).unwrap()[0].shared);
    }

    #[test]
    fn our_own_mappings_are_understood() {
        let all = movable(std::process::id() as i32).unwrap();
        let local = 1u8;
        let here = std::ptr::from_ref(&local) as u64;
        assert!(all.iter().any(|found| found.range.contains(&here)));
        assert_eq!(pinned(std::process::id() as i32).unwrap(), None);
    }
}
