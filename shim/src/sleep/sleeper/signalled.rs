//! A container that somebody sends a signal: through containerd, or past it while it sleeps light.

use super::*;
use crate::sleep::{look, signals};

/// Whether a signal that came through containerd tells the container to end. To one in a pod the kubelet sends what its
/// image names for that, whichever it is, and no other; elsewhere programs take some as a wish to read their files again,
/// or to say what they are doing.
fn tells_to_end(signal: u32, in_pod: bool) -> bool {
    let always = [libc::SIGTERM, libc::SIGINT, libc::SIGKILL].map(libc::c_int::cast_unsigned);
    always.contains(&signal) || (in_pod && signal != 0)
}

impl Sleeper {
    /// Its process was sent `signal` through containerd. Where that tells it to end it does not sleep before it has: what
    /// it does until then can take long and look idle, and at the end of its grace period it is killed.
    pub fn signalled(&mut self, signal: u32) {
        if tells_to_end(signal, !self.new.identity.pod_name.is_empty()) {
            self.terminating = Some(signal);
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

    #[test]
    fn in_a_pod_any_signal_tells_to_end() {
        let told = |signal: libc::c_int, in_pod| tells_to_end(signal.cast_unsigned(), in_pod);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGKILL] {
            assert!(told(signal, false) && told(signal, true), "{signal}");
        }
        // httpd's image names WINCH, haproxy's USR1, nginx's QUIT.
        for signal in [libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGWINCH] {
            assert!(!told(signal, false) && told(signal, true), "{signal}");
        }
        assert!(!told(0, true), "it only asks whether there is a process");
    }
}
