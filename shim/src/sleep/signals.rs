//! Signals that reach a container in light sleep without containerd: `kill` on the node, or systemd when the node shuts
//! down. Its processes are frozen; who is sent one hears of it when it wakes, so it is woken.
//!
//! The kernel has no event for a signal to another process, so it is asked now and then (`SigPnd` and `ShdPnd` in
//! proc_pid_status(5)).

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use super::trouble::Trouble;

/// How often a sleeping container's processes are looked at.
pub const INTERVAL: Duration = Duration::from_secs(2);

/// What is sent by somebody. Others are sent by the kernel, and timers send theirs for as long as a container sleeps.
const SENT: u64 = bit(libc::SIGHUP)
    | bit(libc::SIGINT)
    | bit(libc::SIGQUIT)
    | bit(libc::SIGKILL)
    | bit(libc::SIGUSR1)
    | bit(libc::SIGUSR2)
    | bit(libc::SIGTERM);

const fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

/// What processes tell each other with. One that is on its way when they are stopped is taken when they run again, as
/// whatever else they were in the middle of.
const AMONG_THEMSELVES: u64 = bit(libc::SIGUSR1) | bit(libc::SIGUSR2);

/// What processes have waiting.
#[derive(Debug, Default)]
pub struct Signals {
    /// By process: what it had waiting when it was first looked at, and does not take at once, or has from another one.
    before: HashMap<i32, u64>,
}

impl Signals {
    /// What these processes have waiting, which stand still from now on.
    ///
    /// # Errors
    /// [`Trouble::Traffic`] where one of them was stopped before it could take what it has been sent: asleep it would not
    /// take it either, and in deep sleep nobody would see that it is there.
    pub fn at_standstill(processes: &[i32]) -> Result<Self, Trouble> {
        let mut signals = Self::default();
        match signals.have_come(processes) {
            true => Err(Trouble::Traffic("a signal is on its way")),
            false => Ok(signals),
        }
    }

    /// Whether one of these processes, which stand still, has been sent a signal since, or had one that it would have
    /// taken at once.
    pub fn have_come(&mut self, processes: &[i32]) -> bool {
        let mut come = false;
        for &pid in processes {
            // One that is gone needs none.
            if let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) {
                come |= self.has_come(pid, &status);
            }
        }
        come
    }

    fn has_come(&mut self, pid: i32, status: &str) -> bool {
        let set = |name| field(status, name).unwrap_or_default();
        let later = match line(status, "State:").and_then(|state| state.chars().next()) {
            // One that has ended still has what it will never take: the first thread of a process that another thread
            // has ended got a KILL.
            Some('Z' | 'X') => return false,
            // It takes nothing else until somebody has it go on.
            Some('T') => !bit(libc::SIGKILL),
            _ => set("SigBlk:") | AMONG_THEMSELVES,
        };
        let waiting = (set("SigPnd:") | set("ShdPnd:")) & SENT;
        let before = self.before.entry(pid).or_insert(waiting & later);
        waiting & !*before != 0
    }
}

/// A set of signals in a process's status.
fn field(status: &str, name: &str) -> Option<u64> {
    u64::from_str_radix(line(status, name)?, 16).ok()
}

fn line<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says of a process, by its sets of signals.
    fn status(own: u64, shared: u64, blocked: u64) -> String {
        format!("Name:\tx\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\n")
    }

    #[test]
    fn what_it_would_take_at_once_has_come() {
        let term = bit(libc::SIGTERM);
        assert!(!Signals::default().has_come(1, &status(0, 0, 0)));
        assert!(Signals::default().has_come(1, &status(0, term, 0)));
        assert!(Signals::default().has_come(1, &status(bit(libc::SIGKILL), 0, 0)));
    }

    #[test]
    fn what_they_tell_each_other_counts_when_it_comes_later() {
        for signal in [libc::SIGUSR1, libc::SIGUSR2] {
            let mut signals = Signals::default();
            assert!(!signals.has_come(1, &status(bit(signal), 0, 0)));
            assert!(!signals.has_come(1, &status(bit(signal), 0, 0)));
            assert!(!signals.has_come(2, &status(0, 0, 0)));
            assert!(signals.has_come(2, &status(0, bit(signal), 0)));
        }
    }

    #[test]
    fn what_it_has_blocked_counts_when_it_is_new() {
        let (term, user) = (bit(libc::SIGTERM), bit(libc::SIGHUP));
        let mut signals = Signals::default();
        assert!(!signals.has_come(1, &status(0, user, term | user)));
        assert!(!signals.has_come(1, &status(0, user, term | user)));
        assert!(signals.has_come(1, &status(0, user | term, term | user)));
        // Another process is another matter.
        assert!(signals.has_come(2, &status(0, user, 0)));
    }

    #[test]
    fn one_that_has_ended_wakes_nobody() {
        let kill = status(bit(libc::SIGKILL), 0, 0);
        let ended = kill.replace("Name:\tx\n", "Name:\tx\nState:\tZ (zombie)\n");
        assert!(!Signals::default().has_come(1, &ended));
    }

    #[test]
    fn one_that_was_stopped_takes_a_kill_at_once_and_nothing_else() {
        let stopped = |signal| {
            let status = status(bit(signal), 0, 0);
            status.replace("Name:\tx\n", "Name:\tx\nState:\tT (stopped)\n")
        };
        assert!(Signals::default().has_come(1, &stopped(libc::SIGKILL)));
        assert!(!Signals::default().has_come(1, &stopped(libc::SIGTERM)));
    }

    #[test]
    fn timers_wake_nobody() {
        let timers = bit(libc::SIGALRM) | bit(libc::SIGVTALRM) | bit(libc::SIGPROF);
        assert!(!Signals::default().has_come(1, &status(0, timers | bit(libc::SIGCHLD), 0)));
    }
}
