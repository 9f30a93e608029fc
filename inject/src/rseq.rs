//! Restartable sequences: user code that must not be interrupted between its first and last
//! instruction, or begins anew (the kernel's `Documentation/userspace-api/rseq.rst`).
//!
//! The kernel looks at a thread's `struct rseq` when the thread goes back to user mode after it was
//! preempted. If its instruction is inside of the sequence named there, it goes to the sequence's abort
//! handler; if it is outside, the name is taken away. A thread that is made to run a system call
//! elsewhere would lose the name like that, and then go on inside of the sequence on whatever
//! processor. So what the kernel would have done is done here first, as CRIU does
//! (`fixup_thread_rseq`).

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;

use crate::sys::{self, Registers};

/// Offset of `rseq_cs` in `struct rseq`.
const SEQUENCE: u64 = 8;

/// `struct rseq_cs`.
#[derive(Clone, Copy)]
struct Sequence {
    start: u64,
    length: u64,
    abort: u64,
}

impl Sequence {
    fn parse(bytes: &[u8; 32]) -> Self {
        let word = |n: usize| u64::from_ne_bytes(std::array::from_fn(|i| bytes[n * 8 + i]));
        Self {
            start: word(1),
            length: word(2),
            abort: word(3),
        }
    }

    /// The next instruction of a thread that is interrupted at `at`.
    fn leave(self, at: u64) -> u64 {
        if at.wrapping_sub(self.start) < self.length {
            self.abort
        } else {
            at
        }
    }
}

/// The registers with which a stopped thread goes on: its own, at the abort handler where it is in a
/// sequence.
pub(crate) fn left(
    tid: i32,
    registers: Registers,
    memory: &fs::File,
    pagemap: &fs::File,
) -> io::Result<Registers> {
    let Some(area) = sys::rseq_area(tid)? else {
        return Ok(registers);
    };
    // A page that is not there has no name in it. Reading it could wait for whoever fills it in,
    // which can be this thread.
    if !is_there(pagemap, area + SEQUENCE)? {
        return Ok(registers);
    }
    let mut bytes = [0; 8];
    memory.read_exact_at(&mut bytes, area + SEQUENCE)?;
    let address = u64::from_ne_bytes(bytes);
    if address == 0 {
        return Ok(registers);
    }
    let mut bytes = [0; 32];
    // The address of nothing is for the kernel to complain about.
    if memory.read_exact_at(&mut bytes, address).is_err() {
        return Ok(registers);
    }
    let sequence = Sequence::parse(&bytes);
    Ok(registers.at(sequence.leave(registers.instruction())))
}

/// Whether the page at `address` is in memory or in swap.
fn is_there(pagemap: &fs::File, address: u64) -> io::Result<bool> {
    let mut bytes = [0; 8];
    pagemap.read_exact_at(&mut bytes, address / sys::page_size() * 8)?;
    Ok(u64::from_ne_bytes(bytes) >> 62 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inside_means_from_the_first_byte_to_before_the_end() {
        let mut bytes = [0; 32];
        for (word, value) in [(1, 0x1000u64), (2, 0x20), (3, 0x9000)] {
            bytes[word * 8..][..8].copy_from_slice(&value.to_ne_bytes());
        }
        let sequence = Sequence::parse(&bytes);
        for (at, next) in [
            (0xfff, 0xfff),
            (0x1000, 0x9000),
            (0x101f, 0x9000),
            (0x1020, 0x1020),
        ] {
            assert_eq!(sequence.leave(at), next, "{at:#x}");
        }
    }
}
