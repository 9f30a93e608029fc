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
//! Single pages stay that others read in the process's absence, see [`read_by_others`], and those that the
//! kernel reads when a thread ends (`out/locks.rs`).
//!
//! Pages that are shared copy-on-write with another process (fork) are private too, but stay: each
//! process would get a copy of its own back, and memory could be more after a sleep than before.

use std::fs;
use std::io;
use std::ops::Range;

use crate::sys::page_size;

/// A mapping whose pages can leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Movable {
    /// Its addresses.
    pub(crate) range: Range<u64>,
    /// Some of its pages may be shared with another process.
    pub(crate) shared: bool,
    /// It is registered with a userfaultfd already: ours, or it stays.
    pub(crate) armed: bool,
    /// Some of it is in huge pages.
    pub(crate) huge: bool,
}

const STAYS: [&str; 13] = [
    "sh", "lo", "io", "pf", "mm", "ht", "uw", "ui", "dc", "wf", "sl", "ss", "dp",
];
const ARMED: &str = "um";

/// The mappings of process `pid` that can leave, in order. An I/O error when the process is gone,
/// `InvalidData` when its mappings cannot be understood.
pub(crate) fn movable(pid: i32) -> io::Result<Vec<Movable>> {
    parse(&smaps(pid)?).map_err(not_understood)
}

fn smaps(pid: i32) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/smaps"))
}

fn not_understood(line: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("line {line:?}"))
}

/// Whether what process `pid` has mapped at `address` is registered with a userfaultfd.
pub(crate) fn is_armed(pid: i32, address: u64) -> io::Result<bool> {
    armed_at(&smaps(pid)?, address).map_err(not_understood)
}

fn armed_at(smaps: &str, address: u64) -> Result<bool, String> {
    let mappings = mappings(smaps)?;
    let there = mappings
        .iter()
        .find(|(mapping, _)| mapping.range.contains(&address));
    Ok(there.is_some_and(|(_, flags)| has(flags, ARMED)))
}

/// Pages that others read without running: the arguments and the environment, which `ps` and many
/// more get from `/proc/PID/cmdline` and `environ`. The kernel does not wait for a missing page then
/// (`access_remote_vm`), it reads nothing.
pub(crate) fn read_by_others(pid: i32) -> io::Result<Vec<Range<u64>>> {
    parse_read_by_others(
        &fs::read_to_string(format!("/proc/{pid}/stat"))?,
        page_size(),
    )
    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "stat has too few fields"))
}

/// Of proc_pid_stat(5) the fields 48 to 51, whole pages, in order and apart.
fn parse_read_by_others(stat: &str, page: u64) -> Option<Vec<Range<u64>>> {
    /// A program can say that they are anywhere (`PR_SET_MM`); what is too long to be true is not kept.
    const MOST: u64 = 4 << 20;
    // The name, in parentheses, can contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(45);
    let mut next = || -> Option<u64> { fields.next()?.parse().ok() };
    let (arguments, environment) = (next()?..next()?, next()?..next()?);
    let mut ranges: Vec<Range<u64>> = [arguments, environment]
        .into_iter()
        .filter(|range| range.start < range.end && range.end - range.start <= MOST)
        .map(|range| range.start / page * page..range.end.next_multiple_of(page))
        .collect();
    ranges.sort_unstable_by_key(|range| range.start);
    if let [first, second] = &ranges[..]
        && first.end >= second.start
    {
        ranges = std::iter::once(first.start..first.end.max(second.end)).collect();
    }
    Some(ranges)
}

/// What is known of a mapping before its flags, the last line, are read.
#[derive(Default)]
struct Candidate {
    range: Range<u64>,
    plain: bool,
    anonymous: u64,
    shared: u64,
    huge: u64,
}

/// The mappings that can leave.
fn parse(smaps: &str) -> Result<Vec<Movable>, String> {
    let leaves = |(mapping, flags): &(Candidate, &str)| {
        let stays = STAYS.into_iter().any(|flag| has(flags, flag));
        mapping.plain && has(flags, "rd") && !stays && mapping.anonymous > 0
    };
    let mappings = mappings(smaps)?.into_iter().filter(leaves);
    Ok(mappings
        .map(|(mapping, flags)| Movable {
            range: mapping.range,
            shared: mapping.shared > 0,
            armed: has(flags, ARMED),
            huge: mapping.huge > 0,
        })
        .collect())
}

fn has(flags: &str, wanted: &str) -> bool {
    flags.split_ascii_whitespace().any(|flag| flag == wanted)
}

/// All mappings, each with its flags.
fn mappings(smaps: &str) -> Result<Vec<(Candidate, &str)>, String> {
    let mut found = Vec::new();
    let mut current = Candidate::default();
    for line in smaps.lines() {
        let (key, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match key.strip_suffix(':') {
            None => current = header(key, value).ok_or_else(|| line.to_owned())?,
            Some("Anonymous") => current.anonymous = kilobytes(value)?,
            Some("AnonHugePages") => current.huge = kilobytes(value)?,
            Some("Shared_Clean" | "Shared_Dirty" | "KSM") => current.shared += kilobytes(value)?,
            Some("Swap") => current.anonymous += kilobytes(value)?,
            Some("VmFlags") => found.push((std::mem::take(&mut current), value)),
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
    fn arguments_and_environment_are_pages_that_others_read() {
        let stat = |values: [u64; 4]| {
            let before = "0 ".repeat(45);
            let values = values.map(|value| value.to_string()).join(" ");
            parse_read_by_others(&format!("1 (a ) b) {before}{values} 0"), 0x1000)
        };
        assert_eq!(
            stat([0x7010, 0x7020, 0x7020, 0x8fff]),
            Some(std::iter::once(0x7000..0x9000).collect()),
            "as the kernel lays them out"
        );
        assert_eq!(
            stat([0x9000, 0x9001, 0x2000, 0x2001]),
            Some(vec![0x2000..0x3000, 0x9000..0xa000]),
            "moved by the program"
        );
        assert_eq!(stat([0, 0, 0, 0]), Some(Vec::new()), "none");
        assert_eq!(stat([0, u64::MAX, 0, 0]), Some(Vec::new()), "not true");
        assert_eq!(parse_read_by_others("1 (a) S 0", 0x1000), None);
    }

    #[test]
    fn what_is_registered_is_told_by_its_address() {
        let first = mapping("7f0000-7f2000", "rw-p", 0, "", "rd wr um ac");
        let second = mapping("7f2000-7f4000", "rw-p", 0, "", "rd wr ac");
        let smaps = first + &second;
        let armed = |address| armed_at(&smaps, address).unwrap();
        assert!(armed(0x7f_0000) && armed(0x7f_1fff));
        assert!(!armed(0x7f_2000) && !armed(0x7f_4000));
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
    fn huge_pages_are_noticed() {
        let plain = mapping("1000-2000", "rw-p", 0, "", "rd wr");
        assert!(!parse(&plain).unwrap()[0].huge);
        let huge = plain.replace("Swap: ", "AnonHugePages:      2048 kB\nSwap: ");
        assert!(parse(&huge).unwrap()[0].huge);
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
    }
}
