//! A bound on blocking system calls of one thread.

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::time::Duration;

/// Nobody is told of it by default, and nothing in this project uses it.
const SIGNAL: libc::c_int = libc::SIGURG;

/// After the first time it rings it goes on ringing, in case it rang just before a call began.
const AGAIN: Duration = Duration::from_millis(1);

/// A timer of the thread that makes it. When it rings, the system call in which the thread blocks
/// fails with `EINTR`. Uses `SIGURG`, for which it sets a handler in this process.
pub(crate) struct Alarm {
    timer: libc::timer_t,
    /// Whether the thread blocked the signal before.
    blocked: bool,
    /// Of the one thread: a raw pointer is not Send.
    thread: PhantomData<*const ()>,
}

extern "C" fn ignore(_: libc::c_int) {}

impl Alarm {
    pub(crate) fn new() -> io::Result<Self> {
        static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
        let installed =
            HANDLER.get_or_init(|| install().map_err(|e| e.raw_os_error().unwrap_or(0)));
        installed.map_err(io::Error::from_raw_os_error)?;
        // SAFETY: a zeroed sigevent is a valid one.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGNAL;
        // SAFETY: gettid takes nothing and cannot fail.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer = MaybeUninit::uninit();
        // SAFETY: both pointers are to live memory of their types.
        let code = unsafe {
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, timer.as_mut_ptr())
        };
        if code != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            // SAFETY: set by the successful call.
            timer: unsafe { timer.assume_init() },
            blocked: change_mask(libc::SIG_UNBLOCK)?,
            thread: PhantomData,
        })
    }

    /// Rings after `time`, which is at least a nanosecond.
    pub(crate) fn set(&self, time: Duration) {
        self.settime(time.max(Duration::from_nanos(1)), AGAIN);
    }

    /// Does not ring any more.
    pub(crate) fn stop(&self) {
        self.settime(Duration::ZERO, Duration::ZERO);
    }

    fn settime(&self, first: Duration, then: Duration) {
        let spec = |time: Duration| libc::timespec {
            tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let value = libc::itimerspec {
            it_interval: spec(then),
            it_value: spec(first),
        };
        // SAFETY: the timer lives as long as self, and the pointer is to a live value. It cannot fail
        // with values in range.
        unsafe { libc::timer_settime(self.timer, 0, &raw const value, std::ptr::null_mut()) };
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: made by new and deleted only here.
        unsafe { libc::timer_delete(self.timer) };
        if self.blocked {
            // It worked the other way round.
            let _ = change_mask(libc::SIG_BLOCK);
        }
    }
}

/// Blocks or unblocks the signal in the calling thread. Returns whether it was blocked.
fn change_mask(how: libc::c_int) -> io::Result<bool> {
    // SAFETY: the sets are initialised by sigemptyset and the zeroing; all pointers are to live values.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, SIGNAL);
        match libc::pthread_sigmask(how, &raw const set, &raw mut before) {
            0 => Ok(libc::sigismember(&raw const before, SIGNAL) == 1),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn install() -> io::Result<()> {
    // SAFETY: the handler does nothing, so it may run at any time; the action is fully initialised.
    // Without SA_RESTART, so that calls are interrupted.
    let code = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut())
    };
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
