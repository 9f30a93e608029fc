//! What `/proc` says about processes.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::error::Error;

/// Ids of the threads of a process, the leader first; none of one that is gone.
pub(crate) fn threads(pid: i32) -> Result<Vec<i32>, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/task"));
    let failed = |source| Error::Proc {
        operation: "list",
        path: path.clone(),
        source,
    };
    let mut tids = Vec::new();
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(e) if is_gone(&e) => return Ok(tids),
        Err(e) => return Err(failed(e)),
    };
    for entry in entries {
        match entry {
            Ok(entry) => tids.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|n| n.parse::<i32>().ok()),
            ),
            Err(e) if is_gone(&e) => break,
            Err(e) => return Err(failed(e)),
        }
    }
    Ok(tids)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// One number of a thread's `status` file.
pub(crate) fn number(tid: i32, field: &str) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?
        .trim()
        .parse()
        .ok()
}

/// State of a thread, as ps(1) shows it.
pub(crate) fn state(tid: i32) -> Option<char> {
    let text = fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    // "tid (name) state ...", where the name can hold anything.
    text.rsplit_once(") ")?.1.chars().next()
}

/// Whether a thread has ended, or is about to.
pub(crate) fn has_ended(tid: i32) -> bool {
    matches!(state(tid), None | Some('Z' | 'X'))
}

/// Whether a thread that is frozen was stopped by a signal before. Nothing in its state says so, but
/// the function of the kernel in which it waits does.
pub(crate) fn is_stopped_by_signal(tid: i32) -> bool {
    fs::read_to_string(format!("/proc/{tid}/wchan"))
        .is_ok_and(|function| matches!(function.as_str(), "do_signal_stop" | "get_signal"))
}

/// A mapping of a process that can be executed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Code {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) vdso: bool,
}

/// Mappings that can be read and executed, from the text of a `maps` file, the vDSO first.
pub(crate) fn code(maps: &str) -> Vec<Code> {
    let mut all: Vec<_> = maps
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (start, end) = fields.next()?.split_once('-')?;
            let protection = fields.next()?.as_bytes();
            let name = fields.nth(3).unwrap_or_default();
            let readable = protection.first() == Some(&b'r') && protection.get(2) == Some(&b'x');
            readable.then_some(Code {
                start: u64::from_str_radix(start, 16).ok()?,
                end: u64::from_str_radix(end, 16).ok()?,
                vdso: name == "[vdso]",
            })
        })
        .collect();
    all.sort_by_key(|code| !code.vdso);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_mappings_are_found_the_vdso_first() {
        let maps = "\
55d0c2a00000-55d0c2a20000 r-xp 00000000 08:01 123   /usr/bin/with a space\n\
55d0c2a20000-55d0c2a21000 rw-p 00000000 00:00 0     [heap]\n\
7ffd1c3f0000-7ffd1c3f2000 r-xp 00000000 00:00 0     [vdso]\n\
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0     [vsyscall]\n";
        let found = code(maps);
        assert_eq!(found.len(), 2);
        assert!(found[0].vdso && found[0].start == 0x7ffd_1c3f_0000);
        assert_eq!(found[1].end, 0x55d0_c2a2_0000);
    }

    #[test]
    fn this_process_is_there_and_not_traced() {
        let pid = std::process::id().cast_signed();
        assert!(threads(pid).unwrap().contains(&pid));
        assert!(!has_ended(pid));
        assert_eq!(number(pid, "TracerPid"), Some(0));
        assert!(has_ended(i32::MAX));
        assert!(threads(i32::MAX).unwrap().is_empty());
    }
}
