//! A container that somebody sends a signal: through containerd, or past it while it sleeps light.

use super::*;
use crate::sleep::{look, signals};

/// What a signal that came through containerd means for sleep.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// It only asks whether there is a process.
    Nothing,
    Use,
    /// The container is to end.
    End,
}

/// To a container in a pod the kubelet sends what its image names for its end, whichever signal that is, and no other.
/// Elsewhere programs take some as a wish to read their files again, or to say what they are doing.
fn meaning(signal: u32, in_pod: bool) -> Meaning {
    let always = [libc::SIGTERM, libc::SIGINT, libc::SIGKILL].map(libc::c_int::cast_unsigned);
    match signal {
        0 => Meaning::Nothing,
        _ if in_pod || always.contains(&signal) => Meaning::End,
        _ => Meaning::Use,
    }
}

impl Sleeper {
    /// Its process was sent `signal` through containerd. Where that tells it to end it does not sleep before it has: what
    /// it does until then can take long and look idle, and at the end of its grace period it is killed.
    pub fn signalled(&mut self, signal: u32) {
        match meaning(signal, !self.new.identity.pod_name.is_empty()) {
            Meaning::Nothing => return,
            Meaning::Use => {}
            Meaning::End => self.terminating = Some(signal),
        }
        self.used();
        self.check_soon();
    }

    /// It stands still, since its processes had `signals` waiting.
    pub(super) fn watch_for_signals(&mut self, signals: Signals) {
        self.signals = signals;
        self.signals_at = Some(Instant::now());
    }

    /// Wakes it if one of its processes has been sent a signal.
    pub(super) fn look_for_signals(&mut self) -> Outcome {
        self.signals_at = None;
        let light = self.depth() == Some(Depth::Light);
        let Some(facts) = self.facts.as_ref().filter(|_| light) else {
            return Outcome::Nothing;
        };
        match look::processes(facts) {
            Ok(processes) if self.signals.have_come(&processes) => self.wake(WakeCause::Signal),
            Ok(_) => {
                self.signals_at = Some(Instant::now() + signals::INTERVAL);
                Outcome::Nothing
            }
            // Once: it would be said every two seconds.
            Err(cause) => {
                let id = &self.new.identity.id;
                warn!(
                    "signals to container {id} wake it no more: {}",
                    Chain(&cause)
                );
                Outcome::Nothing
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(signal: libc::c_int, in_pod: bool) -> Meaning {
        meaning(signal.cast_unsigned(), in_pod)
    }

    #[test]
    fn in_a_pod_any_signal_tells_to_end() {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGKILL] {
            assert_eq!(told(signal, false), Meaning::End, "{signal}");
            assert_eq!(told(signal, true), Meaning::End, "{signal}");
        }
        // httpd's image names WINCH, haproxy's USR1, nginx's QUIT.
        for signal in [libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGWINCH] {
            assert_eq!(told(signal, false), Meaning::Use, "{signal}");
            assert_eq!(told(signal, true), Meaning::End, "{signal}");
        }
    }

    #[test]
    fn who_asks_whether_there_is_a_process_does_not_use_it() {
        assert_eq!(told(0, false), Meaning::Nothing);
        assert_eq!(told(0, true), Meaning::Nothing);
    }
}
