//! What happens in the address spaces: faults, and what the programs do to their mappings.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Instant;

use super::ServerError;
use super::worker::{Fault, Fork, Mode, Worker};
use crate::sys::keep;
use crate::sys::uffd::Event;

impl Worker {
    /// Reads all there is to read.
    pub(super) fn events(&mut self) -> Result<(), ServerError> {
        if matches!(self.mode, Mode::Failed) {
            return Ok(());
        }
        // Forks append to the list; their turn comes in the next round.
        for index in 0..self.held.len() {
            self.events_of(index)?;
        }
        self.forget_settled_forks();
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().try_for_each(|fault| self.fault(fault))
    }

    pub(super) fn events_of(&mut self, index: usize) -> Result<(), ServerError> {
        while !self.held[index].gone {
            let held = &self.held[index];
            let descriptor = held.uffd.as_fd().as_raw_fd();
            let event = held
                .uffd
                .read()
                .map_err(ServerError::system("read events of", held.space.pid))?;
            let Some(event) = event else { break };
            self.event(index, descriptor, event)?;
        }
        Ok(())
    }

    fn event(&mut self, index: usize, descriptor: RawFd, event: Event) -> Result<(), ServerError> {
        let space = &mut self.held[index].space;
        match event {
            Event::Fault { address, write } => {
                let address = address & !(self.page - 1);
                let since = Instant::now();
                return self.fault(Fault {
                    descriptor,
                    address,
                    write,
                    since,
                });
            }
            Event::Fork { child } => {
                let space = space.fork();
                self.hold(space, keep::adopt(child).into(), None);
                self.forks.push(Fork {
                    parent: descriptor,
                    child,
                });
            }
            Event::Remap { from, to, len } => {
                space.relocate(from, to, len);
                self.repeat_in_children(descriptor, &event)?;
            }
            Event::Remove(range) => match &mut self.mode {
                Mode::Moving(last) => {
                    *last = Instant::now();
                    space.withdraw(range);
                }
                _ => space.forget(&range),
            },
            Event::Unmap(ref range) => {
                space.forget(range);
                self.repeat_in_children(descriptor, &event)?;
            }
        }
        self.stats.events += 1;
        Ok(())
    }
}
