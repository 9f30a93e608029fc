//! Memory in huge pages. It comes back page by page, in ordinary ones, and is put together again when all of it is
//! there, as the kernel's `khugepaged` would do at its leisure.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

use crate::sys::huge::collapse;

/// Bytes that are put together in one go: the time in which the process may wait for its own mappings.
const PIECE: u64 = 16 << 20;

/// How often a piece is tried.
const TRIES: u32 = 3;

/// What a process had in huge pages when its memory was moved out.
#[derive(Debug)]
pub(crate) struct HugePages {
    process: OwnedFd,
    ranges: Vec<Range<u64>>,
}

impl HugePages {
    /// `ranges` of a process.
    pub(crate) fn new(process: OwnedFd, ranges: Vec<Range<u64>>) -> Self {
        Self { process, ranges }
    }

    /// Puts them together again; returns the bytes. What cannot be, stays in ordinary pages: the process has done
    /// something else with it since, there is no huge page left, or the kernel does not do it for others (6.1 does).
    pub(crate) fn restore(&self) -> u64 {
        let mut bytes = 0;
        for range in &self.ranges {
            for start in (range.start..range.end).step_by(PIECE as usize) {
                let piece = start..range.end.min(start + PIECE);
                // Pages that were filled a moment ago can still be on their way to the kernel's lists.
                for _ in 0..TRIES {
                    match collapse(&self.process, &piece) {
                        Ok(done) => {
                            bytes += done;
                            break;
                        }
                        Err(error) if is_final(&error) => return bytes,
                        Err(_) => {}
                    }
                }
            }
        }
        bytes
    }
}

/// Whether nothing more will come of it: the process is gone, or nobody may do this here.
fn is_final(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [libc::ESRCH, libc::EPERM, libc::ENOSYS].contains(&number.unwrap_or(0))
}
