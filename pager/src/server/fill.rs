//! Copying pages from the image into memory: for a fault, ahead of the wake, in the background.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use super::ServerError;
use super::ahead::Piece;
use super::busy::is_busy;
use super::worker::{Fault, Held, Mode, Worker};
use crate::runs::Run;
use crate::sys::memory::PageBuffer;
use crate::sys::uffd::Copied;
use crate::{FillPolicy, Woken};

/// Bytes that are read, checked and copied in one go. What is checked is still in the cache when it
/// is copied, and a fault waits for no more than one of them.
const CHUNK: usize = 512 << 10;
/// Faults whose latency is noted one by one.
const FIRST_FAULTS: usize = 64;
/// Faults that are noted for the working set.
const NOTED_FAULTS: usize = 1 << 16;
/// The kernel has no memory for a page: how long it is asked again. The process's own limits count,
/// and reclaim takes its time.
const MEMORY_PATIENCE: Duration = Duration::from_secs(10);

/// A process that has asked for so many pages since it woke needs more of them, and soon.
const NEEDY: u64 = 64;
/// Time between two looks whether the node is still busy.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The background's progress.
#[derive(Debug)]
pub(super) struct Background {
    policy: FillPolicy,
    started: Instant,
    last_fault: Instant,
    last_chunk: Instant,
    bytes: u64,
    /// It waits for others until then, and looks again.
    not_before: Instant,
}

impl Background {
    /// When the next chunk may be filled.
    pub(super) fn due(&self, page: u64) -> Instant {
        let quiet = self.last_fault + self.policy.quiet;
        let overdue = self.last_chunk + self.policy.patience;
        let seconds = self.bytes as f64 / self.policy.rate.max(page) as f64;
        quiet
            .min(overdue)
            .max(self.started + Duration::from_secs_f64(seconds))
            .max(self.not_before)
    }

    /// Whether others are to go first, after so many faults. Then the next chunk is due a moment later.
    pub(super) fn gives_way(&mut self, now: Instant, faults: u64) -> bool {
        let may = faults < NEEDY && now < self.started + self.policy.give_way;
        let gives_way = may && is_busy();
        if gives_way {
            self.not_before = now + LOOK_AGAIN;
        }
        gives_way
    }
}

impl Worker {
    /// Fills those pages of `plan` that are missing, begins to fill the rest, and has the processes run. None when they
    /// must not: there is an outcome then.
    pub(crate) fn wake<T>(
        &mut self,
        plan: &[(i32, Range<u64>)],
        policy: FillPolicy,
        run: impl FnOnce() -> T,
    ) -> Option<Woken<T>> {
        let started = Instant::now();
        let filled = self.prefetch(plan).unwrap_or_else(|error| {
            self.fail(error);
            Vec::new()
        });
        self.fill(policy);
        if matches!(self.mode, Mode::Failed) {
            return None;
        }
        let prefetch = started.elapsed();
        let ran = run();
        // What they do from now on is heard of afterwards.
        self.note_filled(&filled);
        Some(Woken { prefetch, ran })
    }

    /// Begins to fill in the background.
    pub(crate) fn fill(&mut self, policy: FillPolicy) {
        if matches!(self.mode, Mode::Failed) {
            return;
        }
        self.stop_compressing();
        let now = Instant::now();
        self.mode = Mode::Filling(Background {
            policy,
            started: now,
            last_fault: now,
            last_chunk: now,
            bytes: 0,
            not_before: now + policy.head_start,
        });
    }

    /// Fills those pages of `plan` that are missing. Returns what is not in the books yet.
    fn prefetch(&mut self, plan: &[(i32, Range<u64>)]) -> Result<Vec<Piece>, ServerError> {
        self.stop_compressing();
        let started = Instant::now();
        let before = self.reader.decompressed_bytes();
        let result = self.prefetch_all(plan);
        self.stats.prefetch_time += started.elapsed();
        self.stats.prefetch_decompressed_bytes += self.reader.decompressed_bytes() - before;
        result
    }

    fn prefetch_all(&mut self, plan: &[(i32, Range<u64>)]) -> Result<Vec<Piece>, ServerError> {
        let bytes = |pieces: &[Piece]| pieces.iter().map(|piece| piece.bytes).sum::<u64>();
        let pieces = self.missing_of(plan);
        if pieces.is_empty() {
            return Ok(Vec::new());
        }
        let filled = self.fill_ahead(&pieces)?;
        self.stats.prefetch_bytes += bytes(&filled);
        if bytes(&filled) == bytes(&pieces) {
            return Ok(filled);
        }
        self.note_filled(&filled);
        let mut buffer = PageBuffer::new(CHUNK).map_err(ServerError::system("get memory", None))?;
        for piece in self.missing_of(plan) {
            let mut at = 0;
            while at < piece.bytes {
                let slot = piece.slot + at / self.page;
                let bytes = (piece.bytes - at).min(CHUNK as u64) as usize;
                self.reader.read_into(slot, &mut buffer[..bytes])?;
                let filled = self.put(piece.index, piece.start + at, &buffer[..bytes])?;
                self.stats.prefetch_bytes += filled;
                at += bytes as u64;
            }
        }
        Ok(Vec::new())
    }

    /// What of `plan` is missing.
    fn missing_of(&self, plan: &[(i32, Range<u64>)]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (pid, range) in plan {
            let index = self
                .held
                .iter()
                .position(|held| held.space.pid == Some(*pid));
            let Some(index) = index else { continue };
            let missing = self.held[index].space.missing().within(range.clone());
            pieces.extend(missing.map(|run: Run| Piece {
                index,
                start: run.start,
                bytes: run.end - run.start,
                slot: run.slot,
            }));
        }
        pieces
    }

    /// Fills the next chunk: one long run, or several short ones.
    pub(super) fn background(&mut self) -> Result<(), ServerError> {
        let mut buffer = match self.chunk.take() {
            Some(buffer) => buffer,
            // Not before the wake, which would take longer for it.
            None => PageBuffer::new(CHUNK).map_err(ServerError::system("get memory", None))?,
        };
        let (mut left, mut filled) = (buffer.len(), 0);
        while left > 0 {
            let next = self.held.iter().enumerate().find_map(|(index, held)| {
                let run = held.space.missing().next(0).filter(|_| !held.gone)?;
                Some((index, run))
            });
            let Some((index, run)) = next else { break };
            let bytes = (run.end - run.start).min(left as u64) as usize;
            self.reader.read_into(run.slot, &mut buffer[..bytes])?;
            let put = self.put(index, run.start, &buffer[..bytes])?;
            filled += put;
            left -= bytes;
            if put < bytes as u64 {
                // An event to read, perhaps.
                break;
            }
        }
        self.chunk = Some(buffer);
        if let Mode::Filling(background) = &mut self.mode {
            background.last_chunk = Instant::now();
            if filled == 0 {
                // There was an event to read, or no memory: as after a fault, in a moment.
                background.last_fault = background.last_chunk;
            }
            background.bytes += filled;
            self.stats.background_bytes += filled;
            self.stats.background_time = background.started.elapsed();
        }
        Ok(())
    }

    /// Copies `content` to missing pages from `address` on, until an event has to be read first.
    /// Returns how many bytes were copied.
    fn put(&mut self, index: usize, address: u64, content: &[u8]) -> Result<u64, ServerError> {
        let page = self.page as usize;
        let held = &mut self.held[index];
        let (mut done, mut piece, mut copied) = (0, content.len(), 0);
        while done < content.len() {
            let at = address + done as u64;
            piece = piece.min(content.len() - done);
            let progress = match held.uffd.copy(at, &content[done..done + piece]) {
                Ok(progress) => progress,
                Err(e) if e.raw_os_error() == Some(libc::ENOMEM) => {
                    // A fault on the page has the patience; here it is not needed yet.
                    return Ok(copied);
                }
                Err(e) => return Err(ServerError::system("fill memory of", held.space.pid)(e)),
            };
            match progress {
                Copied::Bytes(bytes) => {
                    held.space.filled(at..at + bytes);
                    copied += bytes;
                    done += bytes as usize;
                    if (bytes as usize) < piece {
                        break;
                    }
                    piece = content.len();
                }
                Copied::Present(bytes) => {
                    let end = at + bytes + page as u64;
                    held.space.filled(at..end);
                    copied += bytes;
                    done += bytes as usize + page;
                    held.let_go(end - page as u64..end);
                }
                // Two mappings, perhaps: the kernel copies to one at a time.
                Copied::NoRange if piece > page => {
                    piece = (piece / 2).next_multiple_of(page);
                }
                Copied::NoRange => {
                    let end = at + page as u64;
                    held.space.filled(at..end);
                    held.let_go(at..end);
                    done += page;
                }
                Copied::Gone => {
                    held.gone = true;
                    break;
                }
            }
        }
        Ok(copied)
    }

    /// Answers a fault.
    pub(super) fn fault(&mut self, fault: Fault) -> Result<(), ServerError> {
        let page = self.page;
        let descriptor = fault.descriptor;
        let Some(held) = self
            .held
            .iter_mut()
            .find(|held| held.uffd.as_fd().as_raw_fd() == descriptor)
        else {
            return Ok(());
        };
        if !held.reported.is_empty() {
            self.waiting.push(fault);
            return Ok(());
        }
        let slot = held.space.missing().get(fault.address);
        let progress = match slot {
            Some(slot) => {
                self.reader.read_into(slot, &mut self.single)?;
                held.uffd.copy(fault.address, &self.single)
            }
            // A page of its own at once, or else the write would fault again.
            None if fault.write => held.uffd.copy(fault.address, &self.zeros),
            None => held.uffd.zero(fault.address, page),
        };
        let range = fault.address..fault.address + page;
        match progress {
            Ok(Copied::Bytes(0)) => {
                self.waiting.push(fault);
                return Ok(());
            }
            Err(e)
                if e.raw_os_error() == Some(libc::ENOMEM)
                    && fault.since.elapsed() < MEMORY_PATIENCE =>
            {
                self.waiting.push(fault);
                return Ok(());
            }
            Err(e) => return Err(ServerError::system("fill memory of", held.space.pid)(e)),
            Ok(Copied::Bytes(_)) => held.space.filled(range),
            Ok(Copied::Present(_)) => {
                held.space.filled(range.clone());
                held.let_go(range);
            }
            Ok(Copied::NoRange) => held.let_go(range),
            Ok(Copied::Gone) => held.gone = true,
        }
        if let (Some(_), Some(pid)) = (slot, held.space.pid)
            && self.faults.len() < NOTED_FAULTS
        {
            self.faults.push((pid, fault.address));
        }
        if let Mode::Filling(background) = &mut self.mode {
            background.last_fault = Instant::now();
            let stats = &mut self.stats;
            stats.faults += u64::from(slot.is_some());
            stats.zero_faults += u64::from(slot.is_none());
            let took = fault.since.elapsed();
            stats.fault_time += took;
            if stats.first_faults.len() < FIRST_FAULTS {
                stats.first_faults.push(took);
            }
        }
        Ok(())
    }
}

impl Held {
    /// Lets threads that wait for a page that needs no filling look again. When that fails, the
    /// address space is gone, and so are they.
    fn let_go(&mut self, range: Range<u64>) {
        let woken: io::Result<()> = self.uffd.wake(&range);
        self.gone |= woken.is_err() && !self.uffd.is_alive();
    }
}
