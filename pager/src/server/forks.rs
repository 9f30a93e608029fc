//! Children of a fork: what of their parent's other changes they have.
//!
//! ```text
//!   thread 1:  moves A to B ................... reports the move
//!   thread 2:                forks, reports it
//! ```
//!
//! The child begins as the parent was before all changes among which the fork was reported. Which of them it has is asked
//! of its own address space ([`inherited`]).

use std::os::fd::RawFd;
use std::thread;

use super::ServerError;
use super::worker::Worker;
use crate::changes::{Change, inherited};

impl Worker {
    /// Makes those changes of its parent in a child that it has. The child is the one at `index`, `child` its descriptor.
    pub(super) fn inherit(
        &mut self,
        index: usize,
        child: RawFd,
        changes: &[Change],
    ) -> Result<(), ServerError> {
        let missing = self.held[index].space.missing().clone();
        let mut was_registered = |page| self.was_registered(index, page);
        let has = inherited(child, changes, &missing, &mut was_registered)?;
        let space = &mut self.held[index].space;
        let has = changes.iter().zip(has).filter(|(_, has)| *has);
        has.for_each(|(change, _)| space.apply(change));
        Ok(())
    }

    /// Whether a page of a child was registered when it was forked.
    fn was_registered(&mut self, index: usize, page: u64) -> Result<bool, ServerError> {
        loop {
            // It goes its own way already, with one thread.
            let held = &self.held[index];
            let own = held.reported.iter().find_map(|change| {
                let was = change.unmaps(page) || change.leaves(page);
                (was || change.arrives_at(page)).then_some(was)
            });
            if let Some(found) = own.or_else(|| held.uffd.is_registered(page, &self.nowhere)) {
                return Ok(found);
            }
            self.read_events(index)?;
            // Whoever the kernel waits for must run, which has no event.
            thread::yield_now();
        }
    }
}
