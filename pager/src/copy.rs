//! Content of pages into the image, comparing with what is there already.
//!
//! ```text
//!   process memory --process_vm_readv--> buffer --checksum, zero?--> changed pages --pwrite--> slots
//! ```
//!
//! Pages are compared by checksum with the slot they had last time, which needs no read of the
//! image: an unchanged page costs one copy through the cache and is not written again. What is known to be unchanged
//! (`watch.rs`) does not come here.
//!
//! A page that is unchanged and compressed, and that the last wakes have needed, is written once more,
//! plain: nothing is decompressed before a process runs.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::image::{ImageError, Pages, Place, Places, checksum, is_zero};
use crate::out::{GivenUp, OutError};
use crate::runs::{Run, RunMap};
use crate::sys::memory::{self, PageBuffer};
use crate::working_set::WorkingSet;

/// Bytes in one go: little enough to stay in the cache between the steps.
pub(crate) const CHUNK: u64 = 512 << 10;
/// Bytes in one write. For larger ones a file system such as ext4 asks for pieces of memory as large
/// for its cache, and on a machine without free ones the kernel moves other memory around until it has
/// them, page by page: 1.6 s for 1 GB where this takes 0.5.
const WRITE: usize = 64 << 10;
/// From this much on, a second thread helps.
const ALONE: u64 = 8 << 20;

/// Pages to copy, at most [`CHUNK`] bytes of them.
#[derive(Debug)]
pub(crate) struct Job {
    /// Index of the process among those that are moved.
    pub(crate) process: usize,
    pub(crate) pid: i32,
    pub(crate) range: Range<u64>,
}

/// What became of the pages of a job.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Index of the process.
    pub(crate) process: usize,
    /// Where the content is, for pages that are not zero.
    pub(crate) runs: Vec<Run>,
    /// Pages that were written, by address.
    pub(crate) written: Vec<u64>,
    /// Pages that cannot be read.
    pub(crate) unreadable: Vec<Range<u64>>,
    /// Bytes that were in the image already.
    pub(crate) unchanged: u64,
    /// Bytes of zeros.
    pub(crate) zero: u64,
}

/// Copies what `jobs` name, unless it is `given_up`. `hints` says, for each process, which slots its pages had last time,
/// `working_set` which of them are not to be compressed.
pub(crate) fn copy(
    pages: &mut Pages,
    page: u64,
    jobs: &[Job],
    hints: &[&RunMap],
    working_set: &WorkingSet,
    given_up: &GivenUp<'_>,
) -> Result<Vec<Done>, OutError> {
    let bytes: u64 = jobs.iter().map(|job| job.range.end - job.range.start).sum();
    let sums = Arc::clone(pages.sums());
    let places = Arc::clone(pages.places());
    let places = places.read().unwrap_or_else(PoisonError::into_inner);
    let shared = Shared {
        page,
        jobs,
        hints,
        working_set,
        sums: &sums,
        places: &places,
        given_up,
        next: AtomicUsize::new(0),
        pages: Mutex::new(pages),
    };
    if bytes < ALONE {
        return shared.work();
    }
    thread::scope(|scope| {
        let helper = scope.spawn(|| shared.work());
        let mut done = shared.work()?;
        match helper.join() {
            Ok(more) => done.extend(more?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        Ok(done)
    })
}

struct Shared<'a> {
    page: u64,
    jobs: &'a [Job],
    hints: &'a [&'a RunMap],
    working_set: &'a WorkingSet,
    /// Checksums of the index in force.
    sums: &'a [u64],
    places: &'a Places,
    given_up: &'a GivenUp<'a>,
    next: AtomicUsize,
    pages: Mutex<&'a mut Pages>,
}

impl Shared<'_> {
    fn work(&self) -> Result<Vec<Done>, OutError> {
        let mut buffer =
            PageBuffer::new(CHUNK as usize).map_err(|source| OutError::Memory { source })?;
        let mut done = Vec::new();
        while let Some(job) = self.jobs.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let result = match (self.given_up)() {
                true => Err(OutError::GivenUp),
                false => self.job(job, &mut buffer),
            };
            if result.is_err() {
                // The others need not go on.
                self.next.store(self.jobs.len(), Ordering::Relaxed);
            }
            done.push(result?);
        }
        Ok(done)
    }

    fn job(&self, job: &Job, buffer: &mut PageBuffer) -> Result<Done, OutError> {
        let page = self.page as usize;
        let mut done = Done {
            process: job.process,
            ..Done::default()
        };
        let hints = self.hints[job.process];
        let needed = self.working_set.within(job.pid, job.range.clone());
        let (mut addresses, mut sums) = (Vec::new(), Vec::new());
        let mut at = job.range.start;
        while at < job.range.end {
            // What has been read and must be written is kept at the front of the buffer.
            let kept = addresses.len() * page;
            let want = (job.range.end - at) as usize;
            let read = self.read(job.pid, at, &mut buffer[kept..kept + want], &mut done)?;
            for offset in (0..read).step_by(page) {
                let address = at + offset as u64;
                let from = kept + offset;
                let content = &buffer[from..from + page];
                if is_zero(content) {
                    done.zero += self.page;
                    continue;
                }
                let sum = checksum(content);
                let slot = hints.get(address);
                let slot = slot.filter(|slot| {
                    self.sums.get(*slot as usize) == Some(&sum)
                        && (needed.binary_search(&address).is_err() || !self.is_compressed(*slot))
                });
                if let Some(slot) = slot {
                    done.unchanged += self.page;
                    push(&mut done.runs, address, slot, self.page);
                    continue;
                }
                let to = addresses.len() * page;
                buffer.copy_within(from..from + page, to);
                addresses.push(address);
                sums.push(sum);
            }
            at += read.max(page) as u64;
        }
        self.write(
            &buffer[..addresses.len() * page],
            &addresses,
            &sums,
            &mut done,
        )?;
        done.written = addresses;
        Ok(done)
    }

    fn is_compressed(&self, slot: u64) -> bool {
        matches!(self.places.get(slot), Place::Record { .. })
    }

    /// Reads whole pages, less than asked for when one cannot be read; none when the first cannot.
    fn read(&self, pid: i32, at: u64, into: &mut [u8], done: &mut Done) -> Result<usize, OutError> {
        match memory::read(pid, at, into) {
            Ok(read) => {
                let read = read / self.page as usize * self.page as usize;
                if read == 0 {
                    done.unreadable.push(at..at + self.page);
                }
                Ok(read)
            }
            // Poisoned, a guard page, or not to be read by anybody.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EFAULT | libc::EIO)) => {
                done.unreadable.push(at..at + self.page);
                Ok(0)
            }
            Err(source) => Err(OutError::Proc {
                operation: "read memory of",
                pid,
                source,
            }),
        }
    }

    fn write(
        &self,
        content: &[u8],
        addresses: &[u64],
        sums: &[u64],
        done: &mut Done,
    ) -> Result<(), OutError> {
        if sums.is_empty() {
            return Ok(());
        }
        let lock = || self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let (taken, file, path) = {
            let mut pages = lock();
            let taken = pages.take(sums);
            let file = pages.file().try_clone();
            let path = pages.path().to_owned();
            (taken, file, path)
        };
        let failed = |source: io::Error| ImageError::io("write", &path)(source);
        let file = file.map_err(failed)?;
        let (mut rest, mut addresses) = (content, addresses.iter());
        for slots in taken {
            let (now, later) = rest.split_at(((slots.end - slots.start) * self.page) as usize);
            let mut at = slots.start * self.page;
            for piece in now.chunks(WRITE) {
                file.write_all_at(piece, at).map_err(failed)?;
                at += piece.len() as u64;
            }
            rest = later;
            for (slot, address) in slots.zip(addresses.by_ref()) {
                push(&mut done.runs, *address, slot, self.page);
            }
        }
        Ok(())
    }
}

/// Appends a page, or makes the last run longer.
fn push(runs: &mut Vec<Run>, address: u64, slot: u64, page: u64) {
    if let Some(last) = runs.last_mut()
        && last.end == address
        && last.slot + (last.end - last.start) / page == slot
    {
        last.end += page;
        return;
    }
    runs.push(Run {
        start: address,
        end: address + page,
        slot,
    });
}

#[cfg(test)]
#[expect(
    clippy::single_range_in_vec_init,
    reason = "lists of ranges, of which some have one"
)]
mod tests {
    use super::*;

    /// Copies a buffer of this process.
    fn copied(pages: &mut Pages, memory: &PageBuffer, hints: &RunMap) -> Done {
        let start = memory.as_ptr() as u64;
        let job = Job {
            process: 0,
            pid: std::process::id() as i32,
            range: start..start + memory.len() as u64,
        };
        let page = crate::sys::page_size();
        let nothing = WorkingSet::new(page, 0);
        copy(pages, page, &[job], &[hints], &nothing, &|| false)
            .unwrap()
            .remove(0)
    }

    #[test]
    fn the_second_time_only_what_changed_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let page = crate::sys::page_size();
        let mut pages = Pages::create(dir.path(), page).unwrap();
        let mut memory = PageBuffer::new(8 * page as usize).unwrap();
        for (number, chunk) in (0..).zip(memory.chunks_mut(page as usize)) {
            chunk.fill(number);
        }
        let first = copied(&mut pages, &memory, &RunMap::new(page));
        assert_eq!((first.zero, first.unchanged), (page, 0));
        assert_eq!(first.written.len(), 7);
        let mut hints = RunMap::new(page);
        first.runs.iter().for_each(|run| hints.insert(*run));
        pages.keep([&hints].into_iter()).unwrap();
        let size = pages.sums().len();

        let second = copied(&mut pages, &memory, &hints);
        assert!(second.written.is_empty());
        assert_eq!(second.unchanged, 7 * page);
        assert_eq!(second.runs, first.runs);
        assert_eq!(pages.sums().len(), size);

        memory[3 * page as usize + 5] = 77;
        memory[4 * page as usize..][..page as usize].fill(0);
        let third = copied(&mut pages, &memory, &hints);
        assert_eq!(third.written, [memory.as_ptr() as u64 + 3 * page]);
        assert_eq!(third.zero, 2 * page);
        assert_eq!(pages.sums().len(), size + 1);
    }

    #[test]
    fn unreadable_pages_are_named_and_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let page = crate::sys::page_size();
        let mut pages = Pages::create(dir.path(), page).unwrap();
        let mut memory = PageBuffer::new(4 * page as usize).unwrap();
        memory.fill(9);
        let start = memory.as_ptr() as u64;
        memory.hide(page as usize..2 * page as usize).unwrap();
        let done = copied(&mut pages, &memory, &RunMap::new(page));
        assert_eq!(done.unreadable, [start + page..start + 2 * page]);
        assert_eq!(done.written, [start, start + 2 * page, start + 3 * page]);
    }
    #[test]
    fn a_copy_that_is_given_up_writes_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let page = crate::sys::page_size();
        let mut pages = Pages::create(dir.path(), page).unwrap();
        let mut memory = PageBuffer::new(4 * page as usize).unwrap();
        memory.fill(9);
        let start = memory.as_ptr() as u64;
        let jobs: Vec<_> = (0..4)
            .map(|number| Job {
                process: 0,
                pid: std::process::id() as i32,
                range: start + number * page..start + (number + 1) * page,
            })
            .collect();
        let asked = AtomicUsize::new(0);
        let given_up = || asked.fetch_add(1, Ordering::Relaxed) == 2;
        let hints = RunMap::new(page);
        let nothing = WorkingSet::new(page, 0);
        let failed = copy(&mut pages, page, &jobs, &[&hints], &nothing, &given_up);
        assert!(matches!(failed, Err(OutError::GivenUp)), "{failed:?}");
        let written = pages.file().metadata().unwrap().len();
        assert!(written < 4 * page, "{written} bytes were written");
    }
}
