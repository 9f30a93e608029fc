//! What processes miss at one moment, to be copied elsewhere while they stand still.

use std::cmp::Ordering;
use std::io;
use std::ops::Range;

use crate::image::{ImageError, Reader};
use crate::pager::Moved;
use crate::runs::RunMap;
use crate::server::ServerError;
use crate::sys::kinship;

/// What is missing cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum AbsentError {
    /// The thread that answers for it cannot tell.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Something is missing of an address space of which no process is known.
    #[error("memory of a process that was forked while memory was missing is not back")]
    Forked,
    /// The system refused.
    #[error("compare the address spaces of processes {first} and {second}")]
    Compare {
        /// One of them.
        first: i32,
        /// The other.
        second: i32,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// What processes miss, and where it is in the image. It stays true of the image for as long as
/// nothing is moved out again; a process may get pages back meanwhile, unchanged.
#[derive(Debug)]
pub struct Absent {
    page: u64,
    reader: Reader,
    spaces: Vec<(i32, RunMap)>,
}

impl Moved {
    /// What the processes `pids` miss now; those that share an address space miss the same.
    ///
    /// # Errors
    /// When it cannot be told of all of them.
    pub fn absent(&self, pids: &[i32]) -> Result<Absent, AbsentError> {
        let (pager, server) = self.parts();
        let views = server.call(|worker| {
            worker.stop_compressing();
            worker.views()
        })?;
        let views = views.ok_or(AbsentError::Forked)?;
        let mut spaces = Vec::new();
        for &pid in pids {
            for view in &views {
                if view.pid == pid || share(view.pid, pid)? {
                    spaces.push((pid, view.missing.clone()));
                    break;
                }
            }
        }
        let pages = &pager.pages;
        let (sums, places) = (pages.sums().clone(), pages.places().clone());
        Ok(Absent {
            page: pager.page,
            reader: Reader::open(&pager.directory, pager.page, pages.id(), sums, places)?,
            spaces,
        })
    }
}

fn share(first: i32, second: i32) -> Result<bool, AbsentError> {
    match kinship::compare(first, second) {
        Ok(order) => Ok(order == Ordering::Equal),
        Err(source) => Err(AbsentError::Compare {
            first,
            second,
            source,
        }),
    }
}

impl Absent {
    /// Addresses of missing pages of process `pid`, in order.
    pub fn ranges(&self, pid: i32) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for run in self.of(pid).into_iter().flat_map(RunMap::iter) {
            match ranges.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => ranges.push(run.start..run.end),
            }
        }
        ranges
    }

    /// Reads the content of missing pages from `address` on, whole ones, all of which are missing
    /// of process `pid`. Each is checked.
    ///
    /// # Errors
    /// When the image is not what was written, or does not have all of them.
    pub fn read(&self, pid: i32, address: u64, into: &mut [u8]) -> Result<(), ImageError> {
        let range = address..address + into.len() as u64;
        let mut done = 0;
        for run in self
            .of(pid)
            .into_iter()
            .flat_map(|runs| runs.within(range.clone()))
        {
            if run.start != address + done as u64 {
                break;
            }
            let bytes = (run.end - run.start) as usize;
            self.reader
                .read_into(run.slot, &mut into[done..done + bytes])?;
            done += bytes;
        }
        if done < into.len() {
            let missing = address + done as u64;
            return Err(self.reader.without(format!(
                "page {:#x} of process {pid}",
                missing / self.page * self.page
            )));
        }
        Ok(())
    }

    fn of(&self, pid: i32) -> Option<&RunMap> {
        let space = self.spaces.iter().find(|(known, _)| *known == pid);
        space.map(|(_, missing)| missing)
    }
}
