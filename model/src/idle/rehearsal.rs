//! Dry run: a container that would sleep now has its checkpoint rehearsed, which shows whether one is
//! possible, how long it takes and how large it is. The container stands still for that long.

use std::time::Duration;

/// Time between two rehearsals of a container.
const INTERVAL: Duration = Duration::from_secs(3600);

/// Whether the next rehearsal is due, after the `last` that came to an end.
pub fn rehearsal_due(last: Option<Duration>, now: Duration) -> bool {
    last.is_none_or(|last| now >= last.saturating_add(INTERVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_due_at_first_and_then_once_an_hour() {
        let last = Duration::from_secs(5);
        assert!(rehearsal_due(None, Duration::ZERO));
        assert!(!rehearsal_due(Some(last), last));
        assert!(!rehearsal_due(Some(last), Duration::from_secs(3604)));
        assert!(rehearsal_due(Some(last), Duration::from_secs(3605)));
    }
}
