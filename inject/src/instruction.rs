//! A system call instruction in a process.
//!
//! Every process has a vDSO with one, for clocks it cannot read itself. Where somebody has unmapped it,
//! other code is searched. Nothing is ever written: code can be shared with other threads, and a
//! changed page is a page of the process's own from then on.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::error::Error;
use crate::procfs::{self, Code};
use crate::sys::{INSTRUCTION, INSTRUCTION_ALIGNMENT};

/// Read at once.
const CHUNK: usize = 64 << 10;

/// Address of a system call instruction.
pub(crate) fn find(pid: i32, memory: &fs::File) -> Result<u64, Error> {
    let path = PathBuf::from(format!("/proc/{pid}/maps"));
    let maps = fs::read_to_string(&path).map_err(|source| Error::Proc {
        operation: "read",
        path,
        source,
    })?;
    procfs::code(&maps)
        .iter()
        .find_map(|code| search(memory, code))
        .ok_or(Error::NoInstruction { pid })
}

fn search(memory: &fs::File, code: &Code) -> Option<u64> {
    let mut bytes = vec![0; CHUNK];
    let mut at = code.start;
    while at < code.end {
        let length = CHUNK.min(usize::try_from(code.end - at).unwrap_or(CHUNK));
        // What cannot be read, as a file that has become shorter, is none.
        let read = memory.read_at(&mut bytes[..length], at).ok()?;
        if let Some(offset) = position(&bytes[..read]) {
            return Some(at + offset as u64);
        }
        // An instruction across two chunks is passed over: there are others.
        at += u64::try_from(read).ok().filter(|read| *read > 0)?;
    }
    None
}

fn position(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(INSTRUCTION.len())
        .step_by(INSTRUCTION_ALIGNMENT)
        .position(|window| window == INSTRUCTION)
        .map(|index| index * INSTRUCTION_ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vdso_of_this_process_has_one() {
        let pid = std::process::id().cast_signed();
        let memory = fs::File::open("/proc/self/mem").unwrap();
        let at = find(pid, &memory).unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let vdso = &procfs::code(&maps)[0];
        assert!(vdso.vdso && (vdso.start..vdso.end).contains(&at));
        let mut bytes = vec![0; INSTRUCTION.len()];
        memory.read_exact_at(&mut bytes, at).unwrap();
        assert_eq!(bytes, INSTRUCTION);
    }

    #[test]
    fn without_a_vdso_other_code_has_one() {
        let memory = fs::File::open("/proc/self/mem").unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let found = procfs::code(&maps)
            .iter()
            .filter(|code| !code.vdso)
            .find_map(|code| search(&memory, code));
        assert!(found.is_some());
    }

    #[test]
    fn an_instruction_begins_where_one_can() {
        let mut bytes = vec![0xff; 64];
        assert_eq!(position(&bytes), None);
        bytes[32..32 + INSTRUCTION.len()].copy_from_slice(INSTRUCTION);
        assert_eq!(position(&bytes), Some(32));
        assert_eq!(position(&INSTRUCTION[1..]), None);
    }
}
