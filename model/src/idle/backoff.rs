//! Waiting longer after each failed checkpoint.

use std::time::Duration;

use crate::config::CheckpointConfig;

/// What failed checkpoints of a container say about the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// No attempt before this moment.
    pub until: Duration,
    /// The time between the last failure and `until`.
    pub delay: Duration,
    /// Failures since the last success.
    pub failures: u32,
    /// Why the last attempt failed.
    pub cause: String,
}

/// Exponential back-off: the delay doubles with each failure up to a limit; a success ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackOff {
    initial: Duration,
    max: Duration,
    retry: Option<Retry>,
}

impl BackOff {
    /// `initial` is the first delay; a `max` below it stands for `initial`.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self {
            initial,
            max: max.max(initial),
            retry: None,
        }
    }

    /// With the node's delays.
    pub fn from_config(config: &CheckpointConfig) -> Self {
        Self::new(config.backoff_initial, config.backoff_max)
    }

    /// Notes a failure at `now`.
    pub fn failed(&mut self, now: Duration, cause: impl Into<String>) {
        let (delay, failures) = match &self.retry {
            Some(last) => (last.delay.saturating_mul(2), last.failures),
            None => (self.initial, 0),
        };
        let delay = delay.min(self.max);
        self.retry = Some(Retry {
            until: now.saturating_add(delay),
            delay,
            failures: failures.saturating_add(1),
            cause: cause.into(),
        });
    }

    /// Notes a success: the next failure starts anew.
    pub fn succeeded(&mut self) {
        self.retry = None;
    }

    /// What the failures say, `None` when there are none since the last success.
    pub fn retry(&self) -> Option<&Retry> {
        self.retry.as_ref()
    }
}
