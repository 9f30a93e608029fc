//! Memory out: find, copy, write, and only then take away.
//!
//! ```text
//!   find what can leave            nothing has happened to the processes; an error from here
//!   copy, compare, write           on returns the pager as it was
//!   register ranges
//!   ---------------------------    the image is complete and has checksums
//!   MADV_DONTNEED, by injection    an error here fills everything back first
//! ```
//!
//! Killed before the line, the processes have lost nothing. Killed behind it, what is missing is in
//! the image, and whoever touches it waits, since the keeper has the descriptors.

mod error;
mod find;
mod locks;
mod stay;
mod take;
mod unread;

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use podmotion_inject::{Process, Seized};

pub use error::OutError;
pub(crate) use error::proc;
use find::{Leaving, address_spaces, regions};
use stay::{leave_some, without_left};
use take::withdraw;

use crate::copy::{CHUNK, Done, Job, copy};
use crate::descriptor;
use crate::huge::HugePages;
use crate::pager::{Moved, NotMoved, Pager};
use crate::pins::pinned;
use crate::runs::RunMap;
use crate::server::{Outcome, Server, ServerError};
use crate::stats::{FillPolicy, OutStats};
use crate::sys::keep::pidfd_open;
use crate::watch::Watched;

/// Whether memory need not be moved any more.
pub type GivenUp<'a> = dyn Fn() -> bool + Sync + 'a;

impl Pager {
    /// Moves the private memory of the processes of `seized` to the image. All their threads have
    /// stopped, and no other process shares their address spaces but such as are among them.
    ///
    /// The processes that were moved before and are not among these are left as they are.
    ///
    /// `given_up` is asked while memory is copied, from more than one thread: when it says so, the
    /// processes are left as they are within the time that half a megabyte takes. When the copy is
    /// complete it is not asked any more.
    ///
    /// # Errors
    /// [`NotMoved::Unchanged`]: the processes are as they were. [`NotMoved::Lost`]: memory that was
    /// taken away could not be brought back; the processes must be killed.
    pub fn move_out(
        mut self,
        seized: &mut Seized,
        given_up: &GivenUp<'_>,
    ) -> Result<Moved, NotMoved> {
        if let Err(error) = self.finish_forks() {
            return Err(NotMoved::Lost(error));
        }
        let mut stats = OutStats::default();
        match self.prepare(seized, given_up, &mut stats) {
            Ok((server, leaving)) => match withdraw(&server, seized, &leaving, &mut stats) {
                Ok(()) => {
                    let plan = without_left(self.working_set.plan(), &leaving);
                    Ok(Moved::new(self, server, stats, plan))
                }
                Err(error) => self.bring_back(server, error),
            },
            Err(error) => {
                self.rest();
                Err(NotMoved::unchanged(self, error))
            }
        }
    }

    /// Everything up to the line. The server is taken out of the pager, or made.
    fn prepare(
        &mut self,
        seized: &mut Seized,
        given_up: &GivenUp<'_>,
        stats: &mut OutStats,
    ) -> Result<(Server, Vec<Leaving>), OutError> {
        let started = Instant::now();
        // First: where it is, nothing else can be registered.
        let mut watched = match self.watch.take() {
            Some(watch) => watch.end(self.pages.sums()),
            None => HashMap::new(),
        };
        let ahead = watched.values().flat_map(|watched| &watched.ahead);
        self.pages.accept(ahead.map(|page| (page.slot, page.sum)));
        // It takes as long as finding what can leave, on another processor.
        self.get_ready()?;
        let views = match &self.server {
            Some(server) => server
                .call(|worker| {
                    worker.stop_compressing();
                    worker.views()
                })?
                .unwrap_or_default(),
            None => Vec::new(),
        };
        // All of them: those that share an address space need not share descriptors.
        for process in seized.processes() {
            let (pid, threads) = (process.pid(), process.threads().collect::<Vec<_>>());
            if !threads.is_empty()
                && let Some(what) = pinned(pid, &threads).map_err(proc("look at", pid))?
            {
                return Err(OutError::Pinned { pid, what });
            }
        }
        let mut leaving = Vec::new();
        for pid in address_spaces(seized)? {
            let view = views.iter().find(|view| view.pid == pid);
            let regions = regions(find_process(seized, pid)?, view.is_some(), stats)?;
            let watched = watched.remove(&pid);
            let Watched { same, ahead, uffd } =
                watched.unwrap_or_else(|| Watched::nothing(self.page));
            leaving.push(Leaving {
                pid,
                regions,
                missing: view.map_or_else(|| RunMap::new(self.page), |view| view.missing.clone()),
                known: RunMap::new(self.page),
                same,
                ahead,
                uffd,
                left: Vec::new(),
            });
        }
        self.working_set.leave_out();
        stats.left_bytes = leave_some(&mut leaving, || self.working_set.plan(), self.stay);
        stats.scan_time = started.elapsed();

        let started = Instant::now();
        // Kept in the pager until nothing can go wrong: an error must not drop it.
        if let Some(starting) = self.starting.take() {
            self.server = Some(starting.ready()?);
        }
        let server = self.server.as_ref().ok_or(ServerError::Ended)?;
        for process in &mut leaving {
            let known = views.iter().any(|view| view.pid == process.pid);
            if !known && !process.regions.is_empty() {
                let uffd = match process.uffd.take() {
                    Some(uffd) => uffd,
                    None => make(seized, process.pid)?,
                };
                hand_over(server, process.pid, uffd)?;
            }
        }
        stats.setup_time = started.elapsed();

        let started = Instant::now();
        if let Err(error) = self.copy(&mut leaving, given_up, stats) {
            // What it has written is nobody's, and on a full disk others need the room. That the copy
            // failed is the news, whatever becomes of this.
            let _ = self.pages.keep(self.known.values());
            return Err(error);
        }
        stats.copy_time = started.elapsed();

        let started = Instant::now();
        let others = views
            .into_iter()
            .filter(|view| !leaving.iter().any(|process| process.pid == view.pid))
            .map(|view| (view.pid, view.missing));
        let mut known: Vec<(i32, RunMap)> = others.collect();
        known.extend(
            leaving
                .iter()
                .map(|process| (process.pid, process.known.clone())),
        );
        self.commit(known)?;
        stats.image_bytes = self.pages.disk_bytes()?;
        self.note_huge(&leaving)?;
        let server = self.server.take().ok_or(ServerError::Ended)?;
        for process in &mut leaving {
            let ranges: Vec<_> = process
                .regions
                .iter()
                .map(|region| region.range.clone())
                .collect();
            let pid = process.pid;
            let refused = server.call(move |worker| worker.register(pid, &ranges));
            let refused = match refused {
                Ok(refused) => refused,
                Err(error) => {
                    self.server = Some(server);
                    return Err(error.into());
                }
            };
            process
                .regions
                .retain(|region| !refused.contains(&region.range));
        }
        stats.register_time = started.elapsed();
        Ok((server, leaving))
    }

    fn copy(
        &mut self,
        leaving: &mut [Leaving],
        given_up: &GivenUp<'_>,
        stats: &mut OutStats,
    ) -> Result<(), OutError> {
        let nothing = RunMap::new(self.page);
        let hints: Vec<&RunMap> = leaving
            .iter()
            .map(|process| self.known.get(&process.pid).unwrap_or(&nothing))
            .collect();
        let mut jobs = Vec::new();
        let mut same = Vec::new();
        for (index, process) in leaving.iter().enumerate() {
            let (unread, to_read) = process.told_apart(&self.working_set, self.pages.places());
            same.push(unread);
            for run in to_read {
                let chunks = (run.start..run.end).step_by(CHUNK as usize);
                jobs.extend(chunks.map(|start| Job {
                    process: index,
                    pid: process.pid,
                    range: start..run.end.min(start + CHUNK),
                }));
            }
        }
        let done = copy(
            &mut self.pages,
            self.page,
            &jobs,
            &hints,
            &self.working_set,
            given_up,
        )?;
        for (process, same) in leaving.iter_mut().zip(same) {
            stats.missing_bytes += process.missing.bytes();
            process.known = process.missing.clone();
            // What is left in place is known as it was: when it leaves one day, it is compared with that.
            if let Some(before) = self.known.get(&process.pid) {
                for range in &process.left {
                    for run in before.within(range.clone()) {
                        process.known.insert(run);
                    }
                }
            }
            for run in same {
                stats.unread_bytes += run.end - run.start;
                stats.unchanged_bytes += run.end - run.start;
                process.known.insert(run);
            }
            let ahead = process.ahead.iter();
            let written: Vec<u64> = ahead
                .filter(|page| process.known.get(page.address) == Some(page.slot))
                .map(|page| page.address)
                .collect();
            stats.unchanged_bytes -= written.len() as u64 * self.page;
            stats.written_bytes += written.len() as u64 * self.page;
            let pid = process.pid;
            self.working_set
                .confirm(written.into_iter().map(|address| (pid, address)));
        }
        for Done {
            process,
            runs,
            written,
            unreadable,
            unchanged,
            zero,
        } in done
        {
            let process = &mut leaving[process];
            runs.into_iter().for_each(|run| process.known.insert(run));
            for page in unreadable {
                stats.staying_bytes += self.page;
                process.stays(page);
            }
            stats.unchanged_bytes += unchanged;
            stats.zero_bytes += zero;
            stats.written_bytes += written.len() as u64 * self.page;
            let pid = process.pid;
            self.working_set
                .confirm(written.into_iter().map(|address| (pid, address)));
        }
        Ok(())
    }

    /// Notes what is to be put together again when all memory is back.
    fn note_huge(&mut self, leaving: &[Leaving]) -> Result<(), OutError> {
        self.huge.clear();
        for process in leaving {
            let huge = process.regions.iter().flat_map(|region| &region.huge);
            let ranges: Vec<_> = huge.cloned().collect();
            if !ranges.is_empty() {
                let handle =
                    pidfd_open(process.pid).map_err(proc("get a handle of", process.pid))?;
                self.huge.push(HugePages::new(handle, ranges));
            }
        }
        Ok(())
    }

    /// From here on `known` says where content is, and slots that it does not name are free.
    fn commit(&mut self, known: Vec<(i32, RunMap)>) -> Result<(), OutError> {
        self.known = known.iter().cloned().collect();
        // Before the checksums are shared: what is cut off afterwards is cut off a copy.
        let kept = self.pages.keep(self.known.values());
        let sums = self.pages.sums().clone();
        let server = self.server.as_ref().ok_or(ServerError::Ended)?;
        // Whatever became of it: what is not named is free.
        server.call(move |worker| worker.set_known(sums, known))?;
        Ok(kept?)
    }

    /// Fills back what was taken away before something went wrong.
    fn bring_back(mut self, server: Server, error: OutError) -> Result<Moved, NotMoved> {
        let filled = server
            .call(|worker| worker.set_moving(false))
            .and_then(|_| server.fill(FillPolicy::at_once()));
        let outcome = match filled {
            Ok(()) => server.wait(),
            Err(error) => Outcome::Failed(error),
        };
        match self.settle(server, outcome) {
            Ok(_) => Err(NotMoved::unchanged(self, error)),
            Err(failed) => Err(NotMoved::Lost(failed)),
        }
    }
}

/// Has a process make a userfaultfd, and takes it.
fn make(seized: &mut Seized, pid: i32) -> Result<OwnedFd, OutError> {
    let process = find_process(seized, pid)?;
    let number = descriptor::create(process)?;
    descriptor::take(process, number)
}

/// Gives the server a process's userfaultfd.
fn hand_over(server: &Server, pid: i32, uffd: OwnedFd) -> Result<(), OutError> {
    let number = uffd.as_raw_fd();
    server.call(move |worker| worker.adopt(pid, number))??;
    Ok(())
}

fn find_process(seized: &mut Seized, pid: i32) -> Result<&mut Process, OutError> {
    seized.process(pid).map_err(|source| OutError::Inject {
        operation: "find",
        pid,
        source,
    })
}
