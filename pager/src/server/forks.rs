//! Forks whose report overtook another one.
//!
//! ```text
//!   thread 1:  moves A to B ................... reports the move
//!   thread 2:                forks, reports it
//! ```
//!
//! Events are reported after what they report, without a lock over both. When a move or an unmapping
//! is read after a fork, the child may have it already, and cannot have been told. Whether it has is
//! asked of the child's address space: where the pages were, nothing can be filled if it has.
//!
//! Until the parent's address space is settled (the kernel says so: nothing can be filled in one that
//! is changing), faults of the child on pages that are not known to be missing are not answered.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::thread;

use super::ServerError;
use super::worker::{Held, Worker};
use crate::sys::uffd::{Copied, Event};

impl Worker {
    /// An event of `parent` was read: does it in children that have it already.
    pub(super) fn repeat_in_children(
        &mut self,
        parent: RawFd,
        event: &Event,
    ) -> Result<(), ServerError> {
        let children = self.forks.iter().filter(|fork| fork.parent == parent);
        let children: Vec<RawFd> = children.map(|fork| fork.child).collect();
        for child in children {
            if !self.has_happened(child, event)? {
                continue;
            }
            let Some(held) = self.child(child) else {
                continue;
            };
            match event {
                Event::Remap { from, to, len } => held.space.relocate(*from, *to, *len),
                Event::Unmap(range) => held.space.forget(range),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the pages that an event moved or unmapped are gone from where they were. False where
    /// none of them is missing: then it makes no difference.
    fn has_happened(&mut self, child: RawFd, event: &Event) -> Result<bool, ServerError> {
        let range = match event {
            Event::Remap { from, len, .. } => *from..from.saturating_add(*len),
            Event::Unmap(range) => range.clone(),
            _ => return Ok(false),
        };
        loop {
            let Some(index) = self.position(child) else {
                return Ok(false);
            };
            let held = &self.held[index];
            let Some(run) = held.space.missing().within(range.clone()).next() else {
                return Ok(false);
            };
            self.reader.read_into(run.slot, &mut self.single)?;
            let held = &mut self.held[index];
            match held.uffd.copy(run.start, &self.single) {
                Ok(Copied::NoRange) => return Ok(true),
                Ok(Copied::Gone) => {
                    held.gone = true;
                    return Ok(false);
                }
                Ok(Copied::Bytes(0)) => {
                    // The child is changing too. Whoever the kernel waits for must run, which has
                    // no event.
                    self.events_of(index)?;
                    thread::yield_now();
                }
                Ok(Copied::Bytes(_) | Copied::Present(_)) => {
                    held.space.filled(run.start..run.start + self.page);
                    return Ok(false);
                }
                Err(e) => return Err(ServerError::system("fill memory of", held.space.pid)(e)),
            }
        }
    }

    /// Children whose parents are settled are known to be as they are taken to be.
    pub(super) fn forget_settled_forks(&mut self) {
        let held = &self.held;
        self.forks.retain(|fork| {
            held.iter()
                .find(|held| held.uffd.as_fd().as_raw_fd() == fork.parent)
                .is_some_and(|held| held.uffd.is_changing())
        });
    }

    /// Whether more may have happened to an address space than is known.
    pub(super) fn is_unsettled(&self, descriptor: RawFd) -> bool {
        self.forks.iter().any(|fork| fork.child == descriptor)
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
