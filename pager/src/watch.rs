//! Which pages nobody has written to in the moments before a sleep, so that they need not be read when the processes
//! stand still.
//!
//! ```text
//!   processes    running -- stopped -- running ------------------------- stopped --
//!                           protect    compare with the image,           what was
//!                                      write what differs to it          written to?
//! ```
//!
//! A page that was protected, then found to be as in the image or written to it, and then not written to by the process,
//! is as in the image. The kernel takes the protection off at the first write, by itself: nobody waits for an answer
//! (`UFFD_FEATURE_WP_ASYNC` and `PAGEMAP_SCAN`, Linux 6.7, Documentation/admin-guide/mm/pagemap.rst).
//!
//! Invariants:
//!
//! 1. *Nobody writes past the protection.* It is put up while all threads are stopped: none is inside of a read whose
//!    device would write to a page later. Processes that have let a device or the kernel do that are not watched
//!    ([`pinned`]); who gets at a page later takes its protection off with that.
//! 2. *A page that is protected is the one that was compared.* What is mapped elsewhere, or anew, is not registered, and
//!    the kernel refuses to tell of it (`PM_SCAN_CHECK_WPASYNC`): then all of the range counts as written.
//! 3. *An address space is that of the process still.* One that runs another program by now has a new one, in which nothing
//!    is registered, while the old one can go on in another process.
//! 4. *Nothing depends on it.* When it ends, however it ends, the processes go on as if it had not been there.
//!
//! Huge pages are not protected: a write would split them.
//!
//! What else can be done while the processes run is done too: each is given the userfaultfd that its memory is registered
//! with when it leaves.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use podmotion_inject::Seized;

use crate::copy::CHUNK;
use crate::descriptor;
use crate::image::{Draft, SLACK, checksum, is_zero};
use crate::maps;
use crate::out::{OutError, proc};
use crate::pager::Pager;
use crate::pins::pinned;
use crate::runs::{Run, RunMap};
use crate::sys::memory::{self, PageBuffer};
use crate::sys::pagemap::Pagemap;
use crate::sys::uffd::Uffd;

/// Bytes of changed pages that are written ahead at most: no more than what may be free in an image.
const AHEAD: u64 = SLACK;

/// What processes are to be compared with.
pub struct Watching {
    page: u64,
    sums: Arc<Vec<u64>>,
    draft: Option<Draft>,
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
    /// What the image had when it began.
    sums: Arc<Vec<u64>>,
    draft: Option<Draft>,
    spaces: Vec<Space>,
}

/// One address space.
#[derive(Debug)]
struct Space {
    pid: i32,
    uffd: Uffd,
    /// For the next sleep.
    next: Option<OwnedFd>,
    pagemap: Pagemap,
    /// Registered.
    ranges: Vec<Range<u64>>,
    /// What the image has of them.
    known: RunMap,
    /// What was in the image when it was compared, or has been written to it then.
    same: RunMap,
    /// What has been written to it then.
    ahead: Vec<Ahead>,
}

/// A page that has been written to the image before its process stands still.
#[derive(Debug)]
pub(crate) struct Ahead {
    pub(crate) address: u64,
    pub(crate) slot: u64,
    pub(crate) sum: u64,
}

/// What a watch has to say of a process that stands still now.
#[derive(Debug)]
pub(crate) struct Watched {
    /// Pages that are in the image as they are.
    pub(crate) same: RunMap,
    /// Those of them that were written to it while it was watched.
    pub(crate) ahead: Vec<Ahead>,
    /// A new userfaultfd of its address space.
    pub(crate) uffd: Option<OwnedFd>,
}

impl Watched {
    /// Nothing, of a process that was not watched.
    pub(crate) fn nothing(page: u64) -> Self {
        Self {
            same: RunMap::new(page),
            ahead: Vec::new(),
            uffd: None,
        }
    }
}

impl Pager {
    /// What its processes are to be compared with before the next sleep. None where the kernel cannot note writes, or
    /// there is nothing to compare with.
    pub fn watching(&mut self) -> Option<Watching> {
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
        if processes.is_empty() {
            return None;
        }
        // Before the checksums are shared. Without one, what has changed is written later.
        let draft = self.pages.lend((AHEAD / self.page) as usize).ok().flatten();
        Some(Watching {
            page: self.page,
            sums: Arc::clone(self.pages.sums()),
            draft,
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
            draft: self.draft,
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
            let made = descriptor::create_for_watching(process)?;
            let uffd = Uffd::from(descriptor::take(process, made)?);
            uffd.handshake_for_watching()
                .map_err(proc("watch the memory of", pid))?;
            let pagemap = Pagemap::open(pid).map_err(proc("open the page table of", pid))?;
            let next = match descriptor::create(process) {
                // Then the sleep says why.
                Err(OutError::Refused { .. }) => None,
                made => Some(descriptor::take(process, made?)?),
            };
            let mut space = Space {
                pid,
                uffd,
                next,
                pagemap,
                ranges: Vec::new(),
                known,
                same: RunMap::new(self.page),
                ahead: Vec::new(),
            };
            ranges.into_iter().for_each(|range| space.protect(range));
            watch.spaces.push(space);
        }
        Ok(watch)
    }
}

impl Watch {
    /// Compares what was not written to with the image, while the processes run, for as long as there is time, and writes
    /// some of what differs to it.
    ///
    /// # Errors
    /// When there is no memory for a buffer. What was compared by then counts.
    pub fn compare(&mut self, until: Instant) -> io::Result<()> {
        let mut buffer = PageBuffer::new(CHUNK as usize)?;
        for space in &mut self.spaces {
            space.compare(self.page, &self.sums, &mut self.draft, &mut buffer, until);
        }
        Ok(())
    }

    /// Bytes that need not be read if nobody writes to them any more.
    pub fn same_bytes(&self) -> u64 {
        self.spaces.iter().map(|space| space.same.bytes()).sum()
    }

    /// What is as in the image with these checksums, by process. All threads have been stopped, and nothing is
    /// protected or registered afterwards.
    pub(crate) fn end(mut self, sums: &Arc<Vec<u64>>) -> HashMap<i32, Watched> {
        let spaces = std::mem::take(&mut self.spaces);
        if !Arc::ptr_eq(sums, &self.sums) {
            return HashMap::new();
        }
        spaces
            .into_iter()
            .filter_map(|space| Some((space.pid, space.end(self.page)?)))
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

    fn compare(
        &mut self,
        page: u64,
        sums: &[u64],
        draft: &mut Option<Draft>,
        buffer: &mut PageBuffer,
        until: Instant,
    ) {
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
                        let mut slot = run.slot + (start - run.start) / page;
                        let sum = checksum(content);
                        if sums.get(slot as usize) != Some(&sum) {
                            match written(draft, content) {
                                Some(new) => slot = new,
                                None => continue,
                            }
                            let address = start;
                            self.ahead.push(Ahead { address, slot, sum });
                        }
                        let end = start + page;
                        self.same.insert(Run { start, end, slot });
                    }
                }
            }
        }
    }

    /// Of what was as in the image, that which nobody has written to since. None where its process has left the address
    /// space.
    fn end(mut self, page: u64) -> Option<Watched> {
        let mut same = RunMap::new(page);
        for range in &self.ranges {
            for run in self.pagemap.unwritten(range).unwrap_or_default() {
                self.same.within(run).for_each(|run| same.insert(run));
            }
        }
        if !is_of(self.pid, &same) {
            return None;
        }
        let mut ahead = std::mem::take(&mut self.ahead);
        ahead.retain(|page| same.get(page.address) == Some(page.slot));
        let uffd = self.next.take();
        Some(Watched { same, ahead, uffd })
    }
}

/// Whether a process has the address space of which `same` has not been written to. What it has mapped in another one is not
/// registered, which the kernel tells of.
fn is_of(pid: i32, same: &RunMap) -> bool {
    let now = Pagemap::open(pid);
    let (Some(run), Ok(now)) = (same.iter().next(), now) else {
        return false;
    };
    let page = run.start..run.start + same.page();
    now.unwritten(&page).is_ok_and(|found| !found.is_empty())
}

/// The slot of what has been written. None where there is no room for more.
fn written(draft: &mut Option<Draft>, content: &[u8]) -> Option<u64> {
    if is_zero(content) {
        return None;
    }
    match draft.as_mut()?.write(content) {
        Ok(slot) => slot,
        // It is tried again when it must succeed.
        Err(_) => {
            *draft = None;
            None
        }
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
