//! What the last wakes needed, filled by two threads: the processes stand still, and so do processors.
//!
//! Only what goes as it should is done here. Whatever else there is to it, such as a page that is there already or
//! a mapping that is gone, is left to [`Worker::put`], which comes afterwards.
//!
//! Where the image is not in memory any more, all that is still to be read is asked for before anybody waits for some of it: a
//! disk is quick with many requests at once, and slow with one after the other.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use super::ServerError;
use super::busy::is_busy;
use super::worker::{Held, Worker};
use crate::image::Reader;
use crate::sys::memory::PageBuffer;
use crate::sys::uffd::Copied;

/// Bytes in one go: so little that both threads end at nearly the same time.
const PIECE: u64 = 64 << 10;
/// From this much on, a second thread helps: to start it takes as long as 30 pages.
const ALONE: u64 = 512 << 10;

/// Missing pages in a row, whose content is in a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// Index of the address space.
    pub(super) index: usize,
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) slot: u64,
}

struct Shared<'a> {
    reader: &'a Reader,
    held: &'a [Held],
    pieces: &'a [Piece],
    next: AtomicUsize,
    /// The disk is asked for all that is still to be read.
    asked: AtomicBool,
    /// So many bytes.
    asked_bytes: AtomicU64,
}

impl Worker {
    /// Fills most of `pieces`. Returns which; that is not in the books yet, for which nobody should have to wait.
    pub(super) fn fill_ahead(&mut self, pieces: &[Piece]) -> Result<Vec<Piece>, ServerError> {
        let pieces: Vec<Piece> = pieces
            .iter()
            .flat_map(|piece| split(*piece, self.page))
            .collect();
        let bytes: u64 = pieces.iter().map(|piece| piece.bytes).sum();
        // Of many containers that wake at once, each would take a processor from another one.
        let alone = bytes < ALONE || is_busy();
        let shared = Shared {
            reader: &self.reader,
            held: &self.held,
            pieces: &pieces,
            next: AtomicUsize::new(0),
            asked: AtomicBool::new(false),
            asked_bytes: AtomicU64::new(0),
        };
        let works = thread::scope(|scope| {
            let helper = || {
                let helper = thread::Builder::new()
                    .name("pager-ahead".to_owned())
                    .stack_size(256 << 10);
                // Where the pod may have no more threads, this one does it alone.
                helper.spawn_scoped(scope, || shared.work()).ok()
            };
            let helper = if alone { None } else { helper() };
            let own = shared.work();
            let other = helper.map(|helper| match helper.join() {
                Ok(other) => other,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            [Some(own), other]
        });
        self.stats.prefetch_asked_bytes += shared.asked_bytes.into_inner();
        let (mut filled, mut result) = (Vec::new(), Ok(()));
        for work in works.into_iter().flatten() {
            filled.extend(work.done);
            result = result.and(work.result);
        }
        result.map(|()| filled)
    }

    /// Takes it into the books that these were filled.
    pub(super) fn note_filled(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            let range = piece.start..piece.start + piece.bytes;
            self.held[piece.index].space.filled(range);
        }
    }
}

/// What a thread has done.
struct Work {
    done: Vec<Piece>,
    result: Result<(), ServerError>,
}

impl Shared<'_> {
    fn work(&self) -> Work {
        let mut done = Vec::new();
        let result = self.take_turns(&mut done);
        if result.is_err() {
            // The other need not go on.
            self.next.store(self.pieces.len(), Ordering::Relaxed);
        }
        Work { done, result }
    }

    fn take_turns(&self, done: &mut Vec<Piece>) -> Result<(), ServerError> {
        let mut buffer =
            PageBuffer::new(PIECE as usize).map_err(ServerError::system("get memory", None))?;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = self.pieces.get(number) else {
                return Ok(());
            };
            let content = &mut buffer[..piece.bytes as usize];
            self.reader
                .read_into_or(piece.slot, content, || self.ask_for(number))?;
            if let Ok(Copied::Bytes(bytes)) = self.held[piece.index].uffd.copy(piece.start, content)
                && bytes == piece.bytes
            {
                done.push(*piece);
            }
        }
    }

    /// Asks the disk for this piece and all behind it.
    fn ask_for(&self, number: usize) {
        if self.asked.swap(true, Ordering::Relaxed) {
            return;
        }
        for piece in &self.pieces[number..] {
            self.reader.will_need(piece.slot, piece.bytes);
            self.asked_bytes.fetch_add(piece.bytes, Ordering::Relaxed);
        }
    }
}

fn split(whole: Piece, page: u64) -> impl Iterator<Item = Piece> {
    let step = PIECE.max(page);
    (0..whole.bytes)
        .step_by(step as usize)
        .map(move |at| Piece {
            start: whole.start + at,
            bytes: step.min(whole.bytes - at),
            slot: whole.slot + at / page,
            ..whole
        })
}
