//! Which pages nobody has written to in the moments before a sleep, so that they need not be read when the processes
//! stand still.
//!
//! ```text
//!   processes    running -- stopped -- running ------------------------- stopped --
//!                           protect    compare with the image            what was
//!                                      whatever is not written to        written to?
//! ```
//!
//! A page that was protected, then found to be as in the image, and then not written to, is as in the image. The kernel
//! takes the protection off at the first write, by itself: nobody waits for an answer (`UFFD_FEATURE_WP_ASYNC` and
//! `PAGEMAP_SCAN`, Linux 6.7, Documentation/admin-guide/mm/pagemap.rst).
//!
//! Invariants:
//!
//! 1. *Nobody writes past the protection.* It is put up while all threads are stopped: none is inside of a read whose
//!    device would write to a page later. Processes that have let a device or the kernel do that are not watched
//!    ([`pinned`]); who gets at a page later takes its protection off with that.
//! 2. *A page that is protected is the one that was compared.* What is mapped elsewhere, or anew, is not registered, and
//!    the kernel refuses to tell of it (`PM_SCAN_CHECK_WPASYNC`): then all of the range counts as written.
//! 3. *Nothing depends on it.* When it ends, however it ends, the processes go on as if it had not been there.
//!
//! Huge pages are not protected: a write would split them.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use podmotion_inject::Seized;

use crate::copy::CHUNK;
use crate::descriptor;
use crate::image::checksum;
use crate::maps;
use crate::out::{OutError, proc};
use crate::pager::Pager;
use crate::pins::pinned;
use crate::runs::{Run, RunMap};
use crate::sys::keep::{pidfd_getfd, pidfd_open};
use crate::sys::memory::{self, PageBuffer};
use crate::sys::pagemap::Pagemap;
use crate::sys::uffd::Uffd;

/// What processes are to be compared with.
pub struct Watching {
    page: u64,
    sums: Arc<Vec<u64>>,
    processes: Vec<Candidate>,
}

struct Candidate {
    pid: i32,
    /// What the image has of it.
    known: RunMap,
    /// Its mappings with some of that.
    ranges: Vec<Range<u64>>,
}

/// Which pages of some processes were not written to. Dropping it ends it.
#[derive(Debug)]
pub struct Watch {
    page: u64,
    /// What the slots of `same` refer to.
    sums: Arc<Vec<u64>>,
    spaces: Vec<Space>,
}

/// One address space.
#[derive(Debug)]
struct Space {
    pid: i32,
    uffd: Uffd,
    pagemap: Pagemap,
    /// Registered.
    ranges: Vec<Range<u64>>,
    /// What the image has of them.
    known: RunMap,
    /// Of that, what was as in the image when it was compared.
    same: RunMap,
}

impl Pager {
    /// What its processes are to be compared with before the next sleep. None where the kernel cannot note writes, or
    /// there is nothing to compare with.
    pub fn watching(&self) -> Option<Watching> {
        if self.server.is_some() || !can_watch() {
            return None;
        }
        let known = self.known.iter().filter(|(_, known)| !known.is_empty());
        let processes: Vec<_> = known
            .map(|(pid, known)| Candidate {
                pid: *pid,
                known: known.clone(),
                ranges: Vec::new(),
            })
            .collect();
        (!processes.is_empty()).then(|| Watching {
            page: self.page,
            sums: Arc::clone(self.pages.sums()),
            processes,
        })
    }

    /// What was watched until now, for the next [`move_out`](Self::move_out).
    pub fn set_watch(&mut self, watch: Option<Watch>) {
        self.watch = watch;
    }
}

/// Whether the kernel notes writes by itself.
fn can_watch() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| Uffd::own().is_ok_and(|uffd| uffd.handshake_for_watching().is_ok()))
}

impl Watching {
    /// Finds what can be watched. It takes a millisecond or more, so it comes before the processes are stopped.
    ///
    /// # Errors
    /// When the mappings of a process cannot be read.
    pub fn find(&mut self) -> io::Result<()> {
        for Candidate { pid, known, ranges } in &mut self.processes {
            let movable = match maps::movable(*pid) {
                // It has ended.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => continue,
                other => other?,
            };
            let free = movable.into_iter().filter(|mapping| !mapping.armed);
            ranges.extend(
                free.map(|mapping| mapping.range)
                    .filter(|range| known.within(range.clone()).next().is_some()),
            );
        }
        Ok(())
    }

    /// Protects the pages of those of the processes that are in `seized`, all threads of which are stopped. Who joins
    /// them later is not watched.
    ///
    /// # Errors
    /// When a system call cannot be run in a process. The processes are as they were.
    pub fn begin(self, seized: &mut Seized) -> Result<Watch, OutError> {
        let mut watch = Watch {
            page: self.page,
            sums: self.sums,
            spaces: Vec::new(),
        };
        for Candidate { pid, known, ranges } in self.processes {
            let Ok(process) = seized.process(pid) else {
                continue;
            };
            let threads: Vec<_> = process.threads().collect();
            if threads.is_empty()
                || pinned(pid, &threads)
                    .map_err(proc("look at", pid))?
                    .is_some()
            {
                continue;
            }
            let number = descriptor::create_for_watching(process)?;
            let taken = pidfd_open(pid).and_then(|handle| pidfd_getfd(handle, number));
            descriptor::close(process, number)?;
            let uffd = Uffd::from(taken.map_err(proc("take the userfaultfd of", pid))?);
            uffd.handshake_for_watching()
                .map_err(proc("watch the memory of", pid))?;
            let pagemap = Pagemap::open(pid).map_err(proc("open the page table of", pid))?;
            let mut space = Space {
                pid,
                uffd,
                pagemap,
                ranges: Vec::new(),
                known,
                same: RunMap::new(self.page),
            };
            ranges.into_iter().for_each(|range| space.protect(range));
            watch.spaces.push(space);
        }
        Ok(watch)
    }
}

impl Watch {
    /// Compares what was not written to with the image, while the processes run, for as long as there is time.
    ///
    /// # Errors
    /// When there is no memory for a buffer. What was compared by then counts.
    pub fn compare(&mut self, until: Instant) -> io::Result<()> {
        let mut buffer = PageBuffer::new(CHUNK as usize)?;
        for space in &mut self.spaces {
            space.compare(self.page, &self.sums, &mut buffer, until);
        }
        Ok(())
    }

    /// Bytes that need not be read if nobody writes to them any more.
    pub fn same_bytes(&self) -> u64 {
        self.spaces.iter().map(|space| space.same.bytes()).sum()
    }

    /// What is as in the image with these checksums, by process. All threads have been stopped, and nothing is
    /// protected or registered afterwards.
    pub(crate) fn end(mut self, sums: &Arc<Vec<u64>>) -> HashMap<i32, RunMap> {
        let spaces = std::mem::take(&mut self.spaces);
        if !Arc::ptr_eq(sums, &self.sums) {
            return HashMap::new();
        }
        spaces
            .into_iter()
            .map(|space| (space.pid, space.unwritten(self.page)))
            .collect()
    }
}

impl Space {
    /// What cannot be watched is read when the time comes.
    fn protect(&mut self, range: Range<u64>) {
        if self.uffd.register_for_watching(&range).is_err() {
            return;
        }
        let protected = self.pagemap.protect(&range).is_ok();
        self.ranges.push(range);
        if !protected {
            self.forget_last();
        }
    }

    fn forget_last(&mut self) {
        if let Some(range) = self.ranges.pop() {
            // Fails where the mapping is gone.
            let _ = self.uffd.unregister(&range);
        }
    }

    fn compare(&mut self, page: u64, sums: &[u64], buffer: &mut PageBuffer, until: Instant) {
        for range in &self.ranges {
            let unwritten = self.pagemap.unwritten(range).unwrap_or_default();
            let runs = unwritten.into_iter().flat_map(|run| self.known.within(run));
            for run in runs {
                for start in (run.start..run.end).step_by(CHUNK as usize) {
                    if Instant::now() >= until {
                        return;
                    }
                    let end = run.end.min(start + CHUNK);
                    let into = &mut buffer[..(end - start) as usize];
                    // Whatever cannot be read now is read later, or cannot be then either.
                    let read = memory::read(self.pid, start, into).unwrap_or_default();
                    let pages = into[..read].chunks_exact(page as usize);
                    for (number, content) in (0..).zip(pages) {
                        let start = start + number * page;
                        let slot = run.slot + (start - run.start) / page;
                        if sums.get(slot as usize) == Some(&checksum(content)) {
                            let end = start + page;
                            self.same.insert(Run { start, end, slot });
                        }
                    }
                }
            }
        }
    }

    /// Of what was as in the image, that which nobody has written to since.
    fn unwritten(self, page: u64) -> RunMap {
        let mut still = RunMap::new(page);
        for range in &self.ranges {
            for run in self.pagemap.unwritten(range).unwrap_or_default() {
                self.same.within(run).for_each(|run| still.insert(run));
            }
        }
        still
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // A program that is being started can still have a copy of the descriptor for a moment.
        while !self.ranges.is_empty() {
            self.forget_last();
        }
    }
}
