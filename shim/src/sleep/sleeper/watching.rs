//! What the container writes to just before it falls asleep, so that the rest need not be read while it stands still.

use log::debug;

use super::*;
use crate::sleep::{light, trouble::Trouble};

/// So long before a sleep that nothing but time is missing for, its writes begin to be noted. Awake it pays for that
/// with less than a microsecond at the first write to each page.
const BEFORE: Duration = Duration::from_secs(1);

impl Sleeper {
    /// It stays awake, for this `reason`, and would be looked at again after `recheck`. Returns when it is to be looked
    /// at instead, which is earlier where it will sleep then.
    pub(super) fn watch_before_sleep(
        &mut self,
        reason: &AwakeReason,
        recheck: Option<Duration>,
    ) -> Option<Duration> {
        let only_time = matches!(reason, AwakeReason::Traffic | AwakeReason::Starting);
        // One that sleeps after a second of quiet would be watched most of the time.
        let quiet = self.new.settings.scaledown.unwrap_or_default() > BEFORE;
        match recheck.filter(|_| only_time && quiet) {
            Some(left) if left <= BEFORE => {
                if self.watch.is_none() {
                    self.watch();
                }
                recheck
            }
            Some(left) if self.pager.is_some() => {
                self.unwatch();
                Some(left - BEFORE)
            }
            _ => {
                self.unwatch();
                recheck
            }
        }
    }

    /// Nobody looks at it meanwhile, so that nobody else stops it.
    fn watch(&mut self) {
        let watching = self.pager.as_mut().and_then(Pager::watching);
        let (Some(facts), Some(watching)) = (self.facts.clone(), watching) else {
            return;
        };
        self.looking = true;
        self.in_thread(move || {
            let watch = light::watch(&facts.id, &facts.freezer, watching);
            Notice::Watched(Box::new(watch))
        });
    }

    /// The result of [`watch`](Self::watch). Without one more is read, and nothing else is different.
    pub(super) fn watched(&mut self, result: Result<Watch, Trouble>) {
        self.looking = false;
        match result {
            Ok(watch) => self.watch = Some(watch),
            Err(cause) => debug!("{} is not watched: {}", self.new.identity.id, Chain(&cause)),
        }
        if !self.is_whole() {
            return self.unwatch();
        }
        if std::mem::take(&mut self.outdated) || self.check_at.is_none() {
            self.check();
        }
    }

    pub(super) fn unwatch(&mut self) {
        if let Some(watch) = self.watch.take() {
            self.after_tail(move || drop(watch));
        }
    }
}
