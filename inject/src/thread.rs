//! One thread that is traced.

use std::io;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::procfs;
use crate::sys::{self, Alarm, Registers, Resume, Stop};

/// Time after which a thread that has not stopped is looked at, in case it has ended unnoticed.
const LOOK: Duration = Duration::from_millis(20);

/// A thread between its seizure and its release.
#[derive(Debug)]
pub(crate) struct Thread {
    pub(crate) pid: i32,
    pub(crate) tid: i32,
    pub(crate) place: Place,
    /// It was given the registers of a call, and its own not back.
    pub(crate) calling: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Asked to stop.
    Running,
    /// In the kernel, before user mode.
    Stopped,
    /// Ended, or on its way.
    Gone,
    /// Detached.
    Released,
}

/// Until when to wait, and how long that was at the beginning.
#[derive(Clone, Copy)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) within: Duration,
}

impl Deadline {
    pub(crate) fn after(within: Duration) -> Self {
        Self {
            at: Instant::now() + within,
            within,
        }
    }
}

impl Thread {
    /// Seizes and interrupts a thread. `None`: it has ended. The flag says whether its system calls
    /// pass its seccomp filters.
    pub(crate) fn seize(pid: i32, tid: i32) -> Result<Option<(Self, bool)>, Error> {
        let (result, past_seccomp) = match sys::seize(tid, true) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EINVAL)) => {
                (sys::seize(tid, false), false)
            }
            other => (other, true),
        };
        match result {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(_) if procfs::has_ended(tid) => return Ok(None),
            Err(source) => {
                return Err(match procfs::number(tid, "TracerPid") {
                    Some(tracer) if tracer != 0 => Error::Traced { pid, tid, tracer },
                    _ => Error::Refused { pid, tid, source },
                });
            }
        }
        let mut thread = Self {
            pid,
            tid,
            place: Place::Running,
            calling: false,
        };
        thread.check("interrupt", sys::interrupt(tid))?;
        Ok(Some((thread, past_seccomp)))
    }

    /// Waits until it has stopped, or ended.
    pub(crate) fn wait_stopped(&mut self, alarm: &Alarm, deadline: Deadline) -> Result<(), Error> {
        while self.place == Place::Running {
            match self.wait(alarm, deadline)? {
                Some(Stop::Trap) => {
                    self.place = Place::Stopped;
                    self.forget_interruption()?;
                }
                // Any stop takes back the one that was asked for. The signal is delivered, its handler's
                // frame made, and before the handler's first instruction the thread stops.
                Some(Stop::Signal(signal)) => {
                    self.check("interrupt", sys::interrupt(self.tid))?;
                    self.check("resume", sys::resume(self.tid, Resume::Free, signal))?;
                }
                // No such stop was asked for.
                Some(Stop::Syscall | Stop::Exit) => {
                    self.check("interrupt", sys::interrupt(self.tid))?;
                    self.check("resume", sys::resume(self.tid, Resume::Free, 0))?;
                }
                None => {}
            }
        }
        Ok(())
    }

    /// A few system calls end with `EINTR` after any stop (see signal(7)). The kernel is told to begin
    /// them again, where that is exact: in a wait without a time limit.
    fn forget_interruption(&mut self) -> Result<(), Error> {
        let registers = match self.registers() {
            Err(Error::Gone { .. }) => return Ok(()),
            other => other?,
        };
        match registers.beginning_again() {
            Some(registers) => {
                let result = sys::set_registers(self.tid, &registers);
                self.check("set the registers of", result)
            }
            None => Ok(()),
        }
    }

    /// Lets a stopped thread make the system call that its registers are about to make. It is stopped
    /// after it.
    pub(crate) fn make_call(
        &mut self,
        alarm: &Alarm,
        deadline: Deadline,
    ) -> Result<Registers, Error> {
        let mut begun = false;
        self.resume_to_syscall(0)?;
        loop {
            match self.wait(alarm, deadline)? {
                Some(Stop::Syscall) if begun => {
                    self.place = Place::Stopped;
                    return self.registers();
                }
                Some(Stop::Syscall) => {
                    begun = true;
                    self.resume_to_syscall(0)?;
                }
                // The process stops or goes on, which is for later.
                Some(Stop::Trap | Stop::Exit) => self.resume_to_syscall(0)?,
                Some(Stop::Signal(signal)) if is_fault(signal) => {
                    self.place = Place::Stopped;
                    let Self { pid, tid, .. } = *self;
                    return Err(Error::Fault { pid, tid, signal });
                }
                // One that cannot be blocked: it stops the process.
                Some(Stop::Signal(signal)) => self.resume_to_syscall(signal)?,
                None => return Err(Error::Gone { pid: self.pid }),
            }
        }
    }

    fn resume_to_syscall(&mut self, signal: i32) -> Result<(), Error> {
        self.place = Place::Running;
        self.check("resume", sys::resume(self.tid, Resume::ToSyscall, signal))
    }

    /// The next stop. `None` of a thread that has ended.
    fn wait(&mut self, alarm: &Alarm, deadline: Deadline) -> Result<Option<Stop>, Error> {
        alarm.set(LOOK.min(deadline.at.saturating_duration_since(Instant::now())));
        let stop = self.wait_with_alarm(deadline);
        alarm.stop();
        stop
    }

    fn wait_with_alarm(&mut self, deadline: Deadline) -> Result<Option<Stop>, Error> {
        loop {
            if self.place == Place::Gone {
                return Ok(None);
            }
            match sys::wait_stop(self.tid) {
                Ok(Some(stop)) => return Ok(Some(stop)),
                Ok(None) => self.place = Place::Gone,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                    if procfs::has_ended(self.tid) {
                        self.place = Place::Gone;
                    } else if Instant::now() >= deadline.at {
                        let Self { pid, tid, .. } = *self;
                        let within = deadline.within;
                        return Err(Error::Stuck { pid, tid, within });
                    }
                }
                Err(source) => return Err(self.error("wait for", source)),
            }
        }
    }

    /// The registers of a stopped thread.
    pub(crate) fn registers(&mut self) -> Result<Registers, Error> {
        let result = sys::registers(self.tid);
        let Self { pid, tid, .. } = *self;
        self.value("read the registers of", result)?
            .ok_or(Error::Foreign { pid, tid })
    }

    /// Lets it go. Whatever it cannot be told any more is no error when it has ended.
    pub(crate) fn release(&mut self) -> Result<(), Error> {
        if self.place == Place::Stopped {
            self.place = Place::Released;
            // The kernel has a thread that it detaches look for signals, and so for system calls to
            // restart, on its way out of whatever stop it is in (ptrace_signal_wake_up in
            // __ptrace_unlink).
            match sys::detach(self.tid) {
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => self.place = Place::Gone,
                Err(source) => return Err(self.error("detach", source)),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Takes note of the end of a thread: its process cannot end before. The exit status of a process
    /// that is a child of this one is left to whoever waits for children.
    pub(crate) fn bury(&mut self, alarm: &Alarm, deadline: Deadline) {
        let child = || procfs::number(self.tid, "PPid") == Some(std::process::id().cast_signed());
        if self.tid == self.pid && child() {
            return;
        }
        alarm.set(deadline.at.saturating_duration_since(Instant::now()));
        // Fails when somebody else has taken it, or the time is over: then the end of the tracing
        // thread does the same.
        let _ = sys::take_exit(self.tid);
        alarm.stop();
    }

    /// The value of a request; `Gone` where the thread was killed.
    pub(crate) fn value<T>(
        &mut self,
        operation: &'static str,
        result: io::Result<T>,
    ) -> Result<T, Error> {
        result.map_err(|source| {
            // A stopped thread that takes no requests has been killed.
            if source.raw_os_error() == Some(libc::ESRCH) {
                self.place = Place::Gone;
                Error::Gone { pid: self.pid }
            } else {
                self.error(operation, source)
            }
        })
    }

    /// For requests that only change the thread: one that was killed is noted as gone.
    fn check(&mut self, operation: &'static str, result: io::Result<()>) -> Result<(), Error> {
        match self.value(operation, result) {
            Err(Error::Gone { .. }) => Ok(()),
            other => other,
        }
    }

    fn error(&self, operation: &'static str, source: io::Error) -> Error {
        let tid = self.tid;
        Error::Ptrace {
            operation,
            tid,
            source,
        }
    }
}

/// Signals that an instruction causes.
fn is_fault(signal: i32) -> bool {
    matches!(
        signal,
        libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGTRAP | libc::SIGFPE | libc::SIGSYS
    )
}
