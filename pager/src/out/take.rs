//! Pages taken away, by the process itself: `MADV_DONTNEED` is for one's own memory only.
//!
//! Each call costs some ten switches between this process and that one, so several pieces are given
//! up in one where the kernel can (`process_madvise` on oneself, Linux 6.13).

use std::ops::Range;
use std::time::Instant;

use podmotion_inject::{Process, Seized};

use super::OutError;
use super::find::{Leaving, Region};
use crate::descriptor::{self, call};
use crate::server::{Server, ServerError};
use crate::stats::OutStats;
use crate::sys::page_size;

/// From so many pieces on, the calls to prepare for one that takes many are worth it.
const MANY: usize = 12;
const DONTNEED: u64 = libc::MADV_DONTNEED as u64;
const OPERATION: &str = "take memory of";

/// Takes the pages away.
pub(super) fn withdraw(
    server: &Server,
    seized: &mut Seized,
    leaving: &[Leaving],
    stats: &mut OutStats,
) -> Result<(), OutError> {
    let started = Instant::now();
    let set_moving = |moving| match server.call(move |worker| worker.set_moving(moving)) {
        Ok(true) => Ok(()),
        // What has failed is how the fill ends.
        Ok(false) => Err(ServerError::Ended),
        Err(error) => Err(error),
    };
    set_moving(true)?;
    for process in leaving {
        let Ok(target) = seized.process(process.pid) else {
            continue;
        };
        let pieces: Vec<_> = process.regions.iter().flat_map(Region::pieces).collect();
        match take(target, &pieces) {
            // It was killed meanwhile.
            Err(OutError::Inject {
                source: podmotion_inject::Error::Gone { .. },
                ..
            }) => {}
            result => result?,
        }
    }
    set_moving(false)?;
    stats.drop_time = started.elapsed();
    Ok(())
}

fn take(process: &mut Process, pieces: &[Range<u64>]) -> Result<(), OutError> {
    let taken = if pieces.len() < MANY {
        0
    } else {
        match take_many(process, pieces) {
            // An older kernel, or no descriptor or mapping to be had: one by one.
            Err(OutError::Refused { .. }) => 0,
            taken => taken?,
        }
    };
    for piece in &pieces[taken..] {
        let arguments = [piece.start, piece.end - piece.start, DONTNEED, 0, 0, 0];
        call(process, OPERATION, libc::SYS_madvise, arguments)?;
    }
    Ok(())
}

/// Returns how many of the pieces were taken away; to do one again does no harm.
fn take_many(process: &mut Process, pieces: &[Range<u64>]) -> Result<usize, OutError> {
    // Its own number in its own namespace.
    let own = call(process, OPERATION, libc::SYS_getpid, [0; 6])? as u64;
    let handle = call(
        process,
        OPERATION,
        libc::SYS_pidfd_open,
        [own, 0, 0, 0, 0, 0],
    )?;
    let taken = descriptor::with_page(process, |process, lent| {
        let mut taken = 0;
        // `struct iovec`: address and length.
        for pieces in pieces.chunks(page_size() as usize / 16) {
            let words: Vec<u64> = pieces
                .iter()
                .flat_map(|piece| [piece.start, piece.end - piece.start])
                .collect();
            descriptor::write(process, lent, &words)?;
            let count = pieces.len() as u64;
            let arguments = [handle as u64, lent, count, DONTNEED, 0, 0];
            let bytes = call(process, OPERATION, libc::SYS_process_madvise, arguments)? as u64;
            let all: u64 = pieces.iter().map(|piece| piece.end - piece.start).sum();
            if bytes < all {
                break;
            }
            taken += pieces.len();
        }
        Ok(taken)
    });
    descriptor::close(process, handle as i32)?;
    taken
}
