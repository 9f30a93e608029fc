//! Children of a fork: what of their parent's other changes they have.
//!
//! ```text
//!   thread 1:  moves A to B ................... reports the move
//!   thread 2:                forks, reports it
//! ```
//!
//! The child begins as the parent was before all changes among which the fork was reported. Whether it has one of them
//! is asked of its own address space: what is registered there.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::thread;

use super::ServerError;
use super::worker::{Held, Worker};
use crate::changes::Change;

impl Worker {
    /// Makes the change `changes[at]` in a child that was forked among them, if the child has it.
    pub(super) fn repeat_in_child(
        &mut self,
        child: RawFd,
        changes: &[Change],
        at: usize,
    ) -> Result<(), ServerError> {
        let change = &changes[at];
        let happened = match change {
            // What is given up at the same time as somebody forks is there in the child, or not.
            Change::Remove(_) | Change::Withdraw(_) => {
                changes[at..].contains(&Change::Fork { child })
            }
            Change::Remap { .. } | Change::Unmap(_) => self.has_happened(child, changes, at)?,
            Change::Fork { .. } => false,
        };
        if happened && let Some(held) = self.child(child) {
            held.space.apply(change);
        }
        Ok(())
    }

    /// Whether a child has a move or an unmapping. False where it does not matter, since nothing is missing there.
    fn has_happened(
        &mut self,
        child: RawFd,
        changes: &[Change],
        at: usize,
    ) -> Result<bool, ServerError> {
        let (range, target) = match &changes[at] {
            Change::Remap { from, to, len } => (*from..from.saturating_add(*len), Some(*to)),
            Change::Unmap(range) => (range.clone(), None),
            _ => return Ok(false),
        };
        let missing = |held: &mut Held| held.space.missing().within(range.clone()).next();
        let Some(page) = self.child(child).and_then(missing).map(|run| run.start) else {
            return Ok(false);
        };
        let Some(target) = target.map(|to| page - range.start + to) else {
            return Ok(!self.was_registered(child, page)?);
        };
        if !self.was_registered(child, target)? {
            return Ok(false);
        }
        // Something else was there before.
        let replaced = changes[..at].iter().any(|change| change.unmaps(target));
        let followed = || changes[at..].iter().any(|change| change.arrives_at(page));
        Ok(!replaced || !self.was_registered(child, page)? || followed())
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
