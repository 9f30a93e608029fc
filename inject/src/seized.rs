//! Several processes at once, from their seizure to their release.

use std::io;
use std::marker::PhantomData;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use crate::error::Error;
use crate::process::Process;
use crate::procfs;
use crate::sys::{self, Alarm};
use crate::thread::{Deadline, Place, Thread};

/// Processes whose threads are traced by the thread that made this. See the crate's documentation
/// for the order of things with frozen ones.
///
/// Dropping it releases what it can; the rest is released when the thread ends.
pub struct Seized {
    processes: Vec<Process>,
    gone: Vec<i32>,
    alarm: Rc<Alarm>,
    /// Requests of another thread would fail.
    thread: PhantomData<*const ()>,
}

/// Time for threads to stop or to end when they are to be released.
const RELEASE_TIME: Duration = Duration::from_millis(100);

impl Seized {
    /// Seizes all threads of the processes and asks them to stop. Does not wait for it: a frozen thread
    /// of cgroup version 1 can stop only once it is thawed, and one that was stopped by a signal before
    /// it was frozen can only then be seized. (Thawed it is stopped all the same; a `SIGCONT` just then
    /// could let it run.)
    ///
    /// Processes that have ended, or do before they can be seized, are passed over; see
    /// [`gone`](Self::gone). Children that they make meanwhile are not seized.
    ///
    /// # Errors
    /// When a thread cannot be traced. Threads that were asked to stop by then are released as by
    /// dropping; frozen ones of version 1 when this thread ends.
    pub fn begin(pids: &[i32]) -> Result<Self, Error> {
        let alarm = Alarm::new().map_err(|source| Error::System {
            operation: "make a timer",
            source,
        })?;
        let mut seized = Self {
            processes: Vec::with_capacity(pids.len()),
            gone: Vec::new(),
            alarm: Rc::new(alarm),
            thread: PhantomData,
        };
        for &pid in pids {
            match Process::open(pid, &seized.alarm)? {
                Some(process) => seized.processes.push(process),
                None => seized.gone.push(pid),
            }
        }
        while seized.seize_new(false)? {}
        Ok(seized)
    }

    /// Seizes threads that are not yet. Returns whether there were any.
    fn seize_new(&mut self, thawed: bool) -> Result<bool, Error> {
        let mut any = false;
        for process in &mut self.processes {
            let pid = process.pid();
            let tids = procfs::threads(pid)?;
            // A frozen thread of version 1 looks like one in an uninterruptible sleep.
            let frozen = !thawed
                && tids
                    .first()
                    .is_some_and(|&tid| procfs::state(tid) == Some('D'));
            for tid in tids {
                if process.threads.iter().any(|thread| thread.tid == tid) {
                    continue;
                }
                // The kernel would wait in ptrace_attach until it is thawed.
                if frozen && procfs::is_stopped_by_signal(tid) {
                    continue;
                }
                if let Some((thread, past_seccomp)) = Thread::seize(pid, tid)? {
                    process.threads.push(thread);
                    process.past_seccomp &= past_seccomp;
                    any = true;
                }
            }
        }
        Ok(any)
    }

    /// Waits until all threads have stopped, among them those that were made meanwhile.
    ///
    /// # Errors
    /// [`Error::Stuck`] when one does not `within` the time, as in an uninterruptible sleep;
    /// [`Error::Foreign`] for a process of another architecture.
    pub fn wait_stopped(&mut self, within: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(within);
        loop {
            for process in &mut self.processes {
                for thread in &mut process.threads {
                    thread.wait_stopped(&self.alarm, deadline)?;
                }
            }
            if !self.seize_new(true)? {
                break;
            }
        }
        let gone = &mut self.gone;
        for process in &self.processes {
            if process.threads().next().is_none() && !gone.contains(&process.pid()) {
                gone.push(process.pid());
            }
        }
        Ok(())
    }

    /// The processes, among them such as have ended.
    pub fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        self.processes.iter_mut()
    }

    /// One of the processes.
    ///
    /// # Errors
    /// [`Error::Gone`] when it is not among them.
    pub fn process(&mut self, pid: i32) -> Result<&mut Process, Error> {
        self.processes
            .iter_mut()
            .find(|process| process.pid() == pid)
            .ok_or(Error::Gone { pid })
    }

    /// Processes that had ended before they could be stopped.
    pub fn gone(&self) -> &[i32] {
        &self.gone
    }

    fn threads(&mut self) -> impl Iterator<Item = &mut Thread> {
        self.processes
            .iter_mut()
            .flat_map(|process| &mut process.threads)
    }

    /// Lets all threads go on from where they were. Threads of a process that is stopped by a signal
    /// stay stopped, frozen ones frozen.
    ///
    /// # Errors
    /// The first of those met; all others are released all the same.
    pub fn release(mut self) -> Result<(), Error> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<(), Error> {
        let mut first = Ok(());
        let alarm = Rc::clone(&self.alarm);
        for thread in self.threads() {
            // A call that did not end in time: let go, the thread would go on with the call's registers.
            if thread.calling && thread.place != Place::Gone {
                // Fails on a process that is gone.
                let _ = sys::kill(thread.pid);
            }
        }
        let mut deadline = Deadline::after(Duration::ZERO);
        for thread in self.threads() {
            // Those that have stopped before those that have not: one can wait for the other (vfork).
            let _ = thread.wait_stopped(&alarm, deadline);
            first = first.and(thread.release());
        }
        deadline = Deadline::after(RELEASE_TIME);
        for thread in self.threads() {
            first = first.and(thread.wait_stopped(&alarm, deadline));
            first = first.and(thread.release());
        }
        for process in &mut self.processes {
            // The leader, the first, ends last.
            for thread in process.threads.iter_mut().rev() {
                if thread.place == Place::Gone {
                    thread.bury(&alarm, deadline);
                }
            }
            process.threads.clear();
        }
        first
    }
}

impl Drop for Seized {
    fn drop(&mut self) {
        // Whoever wants to know calls `release`.
        let _ = self.let_go();
    }
}

/// Runs `work` on a thread of its own and waits for it. When it returns, or panics, nothing that it
/// seized is traced any more.
///
/// # Errors
/// When there can be no thread.
///
/// # Panics
/// When `work` does.
pub fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let operation = "make a thread";
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("inject".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|source: io::Error| Error::System { operation, source })?;
        match worker.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
