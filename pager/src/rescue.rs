//! Taking over from a filler that was killed.
//!
//! ```text
//!   directory: index and journal        keeper: the userfaultfds
//!          |                                 |
//!          v                                 v
//!   what was where when the index was   descriptors by the numbers that
//!   written, and what happened since    the journal names (pidfd_getfd)
//!          |                                 |
//!          +---------------> Moved <---------+     then as ever: serve, wait
//! ```
//!
//! Which pages were filled already is not recorded. It need not be: filling a page that is there
//! does nothing. What the program did to its addresses is, to the last event: see [`journal`].
//!
//! [`journal`]: crate::journal

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use crate::image::{ImageError, Index, Pages, ProcessRecord};
use crate::journal::{self, Entry, Left};
use crate::pager::{Moved, Pager};
use crate::runs::RunMap;
use crate::server::{ServerError, start_time};
use crate::space::Space;
use crate::stats::OutStats;
use crate::sys::keep;
use crate::sys::uffd::Event;

/// Nobody can take over.
#[derive(Debug, thiserror::Error)]
pub enum RescueError {
    /// The image or the journal cannot be used. The processes must be killed, if their memory is
    /// missing.
    #[error("the image cannot be used")]
    Image(#[from] ImageError),
    /// All memory was back, or nothing had been taken away yet: the processes are as they were.
    #[error("no memory is missing of what {} describes", directory.display())]
    Complete {
        /// The image's directory.
        directory: std::path::PathBuf,
    },
    /// The filler was killed while it took pages away. The processes must be killed.
    #[error("memory was being taken away when the filler ended")]
    Interrupted,
    /// More happened than the journal has room for. The processes must be killed.
    #[error("the journal was full")]
    JournalFull,
    /// The keeper has ended: its processes have, or it was killed too. In that case what is missing
    /// reads as zeros, and the processes must be killed.
    #[error("process {keeper}, which kept the descriptors, has ended")]
    KeeperGone {
        /// The keeper.
        keeper: i32,
    },
    /// The new filler does not start, or cannot take the descriptors. To be tried again, or the
    /// processes to be killed.
    #[error("the descriptors cannot be taken")]
    Server(#[from] ServerError),
    /// The keeper could not be ended.
    #[error("{operation} process {pid}")]
    Keeper {
        /// What was tried.
        operation: &'static str,
        /// The keeper.
        pid: i32,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Takes over from the filler of the image in `directory`, which has ended. Faults are answered from
/// here on; [`Moved::serve`] fills the rest.
///
/// # Errors
/// See [`RescueError`] for what is to be done about the processes.
pub fn rescue(directory: &Path) -> Result<Moved, RescueError> {
    let complete = || RescueError::Complete {
        directory: directory.to_owned(),
    };
    let index = match Index::read(directory) {
        Err(ImageError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(complete());
        }
        index => index?,
    };
    let left = Left::read(directory, index.generation)?;
    if left.identity.image != index.image {
        let path = journal::path(directory, index.generation);
        let reason = "it is not the one of its index".to_owned();
        return Err(ImageError::Foreign { path, reason }.into());
    }
    if left.done {
        return Err(complete());
    }
    if left.moving {
        return Err(RescueError::Interrupted);
    }
    if left.full {
        return Err(RescueError::JournalFull);
    }
    let keeper = left.identity.keeper;
    let handle = keep::pidfd_open(keeper).map_err(|_| RescueError::KeeperGone { keeper })?;
    // Looked at after the handle was taken: what has this pid now is what the handle is for.
    if start_time(keeper).ok() != Some(left.identity.keeper_start) {
        return Err(RescueError::KeeperGone { keeper });
    }
    let spaces = replay(&index, left.entries);
    let generation = index.generation + 1;
    let mut pager = Pager::adopt(directory, Pages::open(directory, &index)?, generation);
    let server = pager.start_server()?.ready()?;
    let known: Vec<(i32, RunMap)> = spaces
        .values()
        .filter_map(|space| Some((space.pid?, space.known().clone())))
        .collect();
    let start = left.identity.keeper_start;
    server.call(move |worker| worker.take_over(keeper, start, spaces))??;
    Index {
        generation,
        processes: known
            .iter()
            .map(|(pid, runs)| ProcessRecord {
                pid: *pid,
                regions: Vec::new(),
                runs: runs.clone(),
            })
            .collect(),
        ..index
    }
    .write(directory)?;
    pager.known = known.into_iter().collect();
    keep::kill(&handle).map_err(|source| RescueError::Keeper {
        operation: "end",
        pid: keeper,
        source,
    })?;
    // Its index is gone; a journal that stays is replaced some time.
    let _ = fs::remove_file(journal::path(directory, generation - 1));
    Ok(Moved::new(pager, server, OutStats::default()))
}

/// The address spaces as they were when the filler ended, by the numbers of their descriptors.
fn replay(index: &Index, entries: Vec<Entry>) -> BTreeMap<RawFd, Space> {
    let mut spaces: BTreeMap<RawFd, Space> = BTreeMap::new();
    for entry in entries {
        match entry {
            Entry::Adopted { pid, descriptor } => {
                let record = index.processes.iter().find(|process| process.pid == pid);
                let known =
                    record.map_or_else(|| RunMap::new(index.page), |process| process.runs.clone());
                spaces.insert(descriptor, Space::all_missing(pid, known));
            }
            Entry::Event { descriptor, event } => {
                let Some(space) = spaces.get_mut(&descriptor) else {
                    continue;
                };
                match event {
                    Event::Fork { child } => {
                        let space = space.fork();
                        spaces.insert(child, space);
                    }
                    Event::Remap { from, to, len } => space.relocate(from, to, len),
                    Event::Remove(range) | Event::Unmap(range) => space.forget(&range),
                    Event::Fault { .. } => {}
                }
            }
        }
    }
    spaces
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::runs::Run;

    const PAGE: u64 = 4096;

    #[test]
    fn what_happened_is_repeated_in_order() {
        let mut runs = RunMap::new(PAGE);
        runs.insert(Run {
            start: 0,
            end: 8 * PAGE,
            slot: 1,
        });
        let index = Index {
            page: PAGE,
            image: 1,
            generation: 1,
            processes: vec![ProcessRecord {
                pid: 7,
                regions: Vec::new(),
                runs,
            }],
            sums: Arc::new(vec![0; 9]),
        };
        let event = |descriptor, event| Entry::Event { descriptor, event };
        let spaces = replay(
            &index,
            vec![
                Entry::Adopted {
                    pid: 7,
                    descriptor: 4,
                },
                event(4, Event::Remove(0..PAGE)),
                event(4, Event::Fork { child: 5 }),
                event(
                    5,
                    Event::Remap {
                        from: 0,
                        to: 64 * PAGE,
                        len: 4 * PAGE,
                    },
                ),
                event(4, Event::Unmap(6 * PAGE..8 * PAGE)),
            ],
        );
        let (parent, child) = (&spaces[&4], &spaces[&5]);
        assert_eq!((parent.pid, child.pid), (Some(7), None));
        assert_eq!(parent.missing().bytes(), 5 * PAGE);
        assert_eq!(child.missing().bytes(), 7 * PAGE);
        assert_eq!(child.missing().get(65 * PAGE), Some(2));
        assert_eq!(child.missing().get(PAGE), None);
    }
}
