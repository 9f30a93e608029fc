//! Sleep that somebody has asked for.
//!
//! It lasts until the container is used, however long its idle time is. A probe is no use: where the gate has seen none
//! of a container's probes before, the first one wakes it, and it sleeps again when that is answered.

use std::time::Duration;

use podmotion_model::lifecycle::WakeCause;

/// Whether sleep by hand goes on.
#[derive(Debug, Default)]
pub(super) struct ByHand {
    /// When the container fell asleep, by the monotonic clock.
    since: Option<Duration>,
}

impl ByHand {
    /// Somebody's wish came true.
    pub(super) fn fell_asleep(&mut self, now: Duration) {
        self.since = Some(now);
    }

    /// Something has used the container.
    pub(super) fn used(&mut self) {
        self.since = None;
    }

    /// Something wakes it, or wants it awake.
    pub(super) fn wakes(&mut self, cause: WakeCause) {
        if cause != WakeCause::Probe {
            self.since = None;
        }
    }

    /// Whether it does, where the last packet that is use came at that time.
    pub(super) fn lasts(&mut self, last_packet: Option<Duration>) -> bool {
        self.since = self.since.filter(|since| last_packet <= Some(*since));
        self.since.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn it_lasts_until_the_container_is_used() {
        let mut by_hand = ByHand::default();
        assert!(!by_hand.lasts(None));
        by_hand.fell_asleep(second(10));
        by_hand.wakes(WakeCause::Probe);
        assert!(by_hand.lasts(None));
        assert!(by_hand.lasts(Some(second(9))));
        assert!(!by_hand.lasts(Some(second(11))));
        assert!(!by_hand.lasts(None), "it is over");
        by_hand.fell_asleep(second(12));
        by_hand.used();
        assert!(!by_hand.lasts(None));
        by_hand.fell_asleep(second(13));
        by_hand.wakes(WakeCause::Exec);
        assert!(!by_hand.lasts(None));
    }
}
