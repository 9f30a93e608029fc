//! The thread's loop: requests, events, faults, and the background when there is nothing else.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::worker::{Mode, Worker};
use super::{Call, Complete, Outcome, ServerError};

/// While pages are taken away one report follows another: how long the next one is looked for without sleeping.
/// Small mappings take less, and waking up would take longer than they do; in the time of a large one the
/// processor has better things to do.
const NEXT_REPORT: Duration = Duration::from_micros(50);
/// How soon is looked again whether what was reported is all, when nobody waits for it. There is no event.
const NEXT_LOOK: Duration = Duration::from_micros(100);
/// How often address spaces are looked at whose end has no event, while there is nothing else to do.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

enum Turn {
    Go,
    End,
}

impl Worker {
    /// Runs until there is nothing more to do.
    pub(super) fn run(
        &mut self,
        calls: &mpsc::Receiver<Call>,
        wake: OwnedFd,
        ended: OwnedFd,
        outcome: &Mutex<Option<Outcome>>,
    ) {
        let report = |found| {
            *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
            let _ = rustix::io::write(&ended, &1u64.to_ne_bytes());
        };
        loop {
            // A bug here must not let go of the descriptors.
            match catch_unwind(AssertUnwindSafe(|| self.turn(calls, &wake))) {
                Ok(Turn::Go) => {}
                Ok(Turn::End) => break,
                Err(_) => self.fail(ServerError::Ended),
            }
            if let Some(error) = self.failure.take() {
                report(Outcome::Failed(error));
            }
        }
        let failed = matches!(self.mode, Mode::Failed);
        // Closes the descriptors: nothing is registered from here on.
        let held = std::mem::take(&mut self.held);
        let known = held
            .into_iter()
            .filter_map(|held| Some((held.space.pid?, held.space.into_known())))
            .collect();
        if let Some(keeper) = self.keeper.take() {
            // It has nothing left to keep; should it not end, it does with this process.
            let _ = keeper.end();
        }
        if !failed {
            report(Outcome::Complete(Complete {
                known,
                stats: std::mem::take(&mut self.stats),
                faults: std::mem::take(&mut self.faults),
            }));
        }
    }

    fn turn(&mut self, calls: &mpsc::Receiver<Call>, wake: &OwnedFd) -> Turn {
        if let Err(error) = self.events() {
            self.fail(error);
        }
        let mut alone = false;
        // Whoever asks for something asks what is so now.
        while self.is_settled() && !alone {
            match calls.try_recv() {
                Ok(call) => call(self),
                Err(mpsc::TryRecvError::Empty) => break,
                Err(mpsc::TryRecvError::Disconnected) => alone = true,
            }
        }
        if self.failure.is_some() {
            return Turn::Go;
        }
        let settled = self.is_settled();
        match &self.mode {
            Mode::Filling(_) if settled => {
                self.held.retain(|held| !held.gone);
                self.over = self.held.iter().all(|held| held.space.missing().is_empty());
            }
            Mode::Guard | Mode::Failed if alone => {
                self.drop_dead();
                self.over = self.held.is_empty();
            }
            _ => {}
        }
        if self.over {
            return Turn::End;
        }
        let now = Instant::now();
        let timeout = match &mut self.mode {
            Mode::Moving(last) if last.elapsed() < NEXT_REPORT => Some(Duration::ZERO),
            _ if !self.waiting.is_empty() => {
                // Whoever the kernel waits for must run first; that has no event.
                thread::yield_now();
                Some(Duration::ZERO)
            }
            _ if !settled => Some(NEXT_LOOK),
            Mode::Filling(background) => {
                let due = background.due(self.page);
                if due <= now && !background.gives_way(now, self.stats.faults) {
                    if let Err(error) = self.background() {
                        self.fail(error);
                    }
                    return Turn::Go;
                }
                Some(background.due(self.page) - now)
            }
            Mode::Guard | Mode::Failed if alone => {
                self.stop_compressing();
                Some(LOOK_INTERVAL)
            }
            Mode::Guard if self.pass.is_some() => match self.compress_next(now) {
                Some(pause) => Some(pause),
                None => return Turn::Go,
            },
            Mode::Guard | Mode::Moving(_) | Mode::Failed => None,
        };
        self.sleep(wake, timeout);
        Turn::Go
    }

    /// Waits for a call, an event, or the end of a process.
    fn sleep(&mut self, wake: &OwnedFd, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // Without a filler, events wait as the faults do.
        let uffds = !matches!(self.mode, Mode::Failed);
        let mut fds = vec![PollFd::new(wake, PollFlags::IN)];
        let held = self.held.iter().filter(|held| !held.gone);
        for held in held.clone().filter(|_| uffds) {
            fds.push(PollFd::new(&held.uffd, PollFlags::IN));
        }
        let processes = fds.len();
        fds.extend(
            held.flat_map(|held| &held.process)
                .map(|process| PollFd::new(process, PollFlags::IN)),
        );
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return;
        }
        let exited = fds[processes..].iter().any(|fd| !fd.revents().is_empty());
        if !fds[0].revents().is_empty() {
            let mut count = [0; 8];
            let _ = rustix::io::read(wake, &mut count);
        }
        drop(fds);
        if exited {
            self.drop_dead();
        }
    }

    /// Lets go of address spaces that are gone, and stops watching processes that left theirs.
    pub(super) fn drop_dead(&mut self) {
        self.held.retain_mut(|held| {
            let exited = held.process.as_ref().is_some_and(|process| {
                let mut fds = [PollFd::new(process, PollFlags::IN)];
                poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
            });
            if exited {
                held.process = None;
            }
            // What was reported before is taken in first: there may be children.
            held.uffd.is_alive() || !held.reported.is_empty()
        });
    }
}
