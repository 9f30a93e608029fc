//! Children of a fork: what of their parent's other changes they have.
//!
//! ```text
//!   thread 1:  moves A to B ................... reports the move
//!   thread 2:                forks, reports it
//! ```
//!
//! The child begins as the parent was before all changes among which the fork was reported. Which of them it has is asked
//! of its own address space ([`inherited`]).

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::thread;

use super::ServerError;
use super::worker::{Held, Worker};
use crate::changes::{Change, inherited};

impl Worker {
    /// Makes those changes of its parent in a child that it has.
    pub(super) fn inherit(&mut self, child: RawFd, changes: &[Change]) -> Result<(), ServerError> {
        let Some(held) = self.child(child) else {
            return Ok(());
        };
        let missing = held.space.missing().clone();
        let mut was_registered = |page| self.was_registered(child, page);
        let has = inherited(child, changes, &missing, &mut was_registered)?;
        if let Some(held) = self.child(child) {
            let has = changes.iter().zip(has).filter(|(_, has)| *has);
            has.for_each(|(change, _)| held.space.apply(change));
        }
        Ok(())
    }

    /// Whether a page of a child was registered when it was forked.
    fn was_registered(&mut self, child: RawFd, page: u64) -> Result<bool, ServerError> {
        loop {
            let Some(index) = self.position(child) else {
                return Ok(false);
            };
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

    fn position(&self, descriptor: RawFd) -> Option<usize> {
        let mut held = self.held.iter();
        held.position(|held| held.uffd.as_fd().as_raw_fd() == descriptor)
    }

    fn child(&mut self, descriptor: RawFd) -> Option<&mut Held> {
        let index = self.position(descriptor)?;
        self.held.get_mut(index)
    }
}
