//! What happens in the address spaces: faults, and what the programs do to their mappings.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use super::ServerError;
use super::worker::{Fault, Mode, Worker};
use crate::changes::{Change, in_order};
use crate::sys::keep;
use crate::sys::uffd::Event;

impl Worker {
    /// Reads all there is to read, and answers what can be answered.
    pub(super) fn events(&mut self) -> Result<(), ServerError> {
        if matches!(self.mode, Mode::Failed) {
            return Ok(());
        }
        // Forks append to the list; their turn comes in the next round.
        for index in 0..self.held.len() {
            self.read_events(index)?;
            self.settle(index)?;
        }
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().try_for_each(|fault| self.fault(fault))
    }

    /// Whether all changes are known. After a failure nothing more becomes known.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.mode, Mode::Failed) || self.held.iter().all(|held| held.reported.is_empty())
    }

    /// Reads what is reported of an address space. It is taken in when there is no more on its way.
    pub(super) fn read_events(&mut self, index: usize) -> Result<(), ServerError> {
        while !self.held[index].gone {
            let held = &mut self.held[index];
            let event = held
                .uffd
                .read()
                .map_err(ServerError::system("read events of", held.space.pid))?;
            let Some(event) = event else { break };
            let change = match event {
                Event::Fault { address, write } => {
                    self.waiting.push(Fault {
                        descriptor: held.uffd.as_fd().as_raw_fd(),
                        address: address & !(self.page - 1),
                        write,
                        since: Instant::now(),
                    });
                    continue;
                }
                Event::Fork { child } => Change::Fork { child },
                Event::Remap { from, to, len } => Change::Remap { from, to, len },
                Event::Unmap(range) => Change::Unmap(range),
                Event::Remove(range) => match &mut self.mode {
                    Mode::Moving(last) => {
                        *last = Instant::now();
                        Change::Withdraw(range)
                    }
                    _ => Change::Remove(range),
                },
            };
            held.reported.push(change);
            self.stats.events += 1;
        }
        Ok(())
    }

    /// Takes in what was reported of an address space, if that is all.
    fn settle(&mut self, index: usize) -> Result<(), ServerError> {
        let held = &mut self.held[index];
        if held.reported.is_empty() || held.uffd.is_changing() {
            return Ok(());
        }
        let (uffd, nowhere) = (&held.uffd, &self.nowhere);
        let changes = in_order(&held.reported, &mut |page| {
            uffd.is_registered(page, nowhere)
        });
        let Some(changes) = changes else {
            return Ok(());
        };
        held.reported.clear();
        for change in &changes {
            if let Change::Fork { child } = change {
                let space = self.held[index].space.fork();
                self.hold(space, keep::adopt(*child).into(), None);
                self.inherit(self.held.len() - 1, *child, &changes)?;
            }
        }
        for change in &changes {
            self.held[index].space.apply(change);
        }
        Ok(())
    }
}
