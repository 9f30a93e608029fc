//! What the images of a node may take together.

use std::fmt;
use std::time::Duration;

use super::POLL;
use crate::value::{Setting, Share};

/// An image, and what all images of the node may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Bytes that the other images take, those included that are being written.
    pub used: u64,
    /// Bytes that this one takes at most.
    pub needed: u64,
    /// What all may take.
    pub share: Share,
    /// The same in bytes.
    pub limit: u64,
}

impl Quota {
    /// Whether there is no room for the image.
    pub fn is_exceeded(self) -> bool {
        self.used.saturating_add(self.needed) > self.limit
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            used,
            needed,
            share,
            limit,
        } = self;
        write!(
            f,
            "an image of up to {needed} bytes beside {used} bytes of others would exceed the quota \
             of {} ({limit} bytes)",
            share.render(),
        )
    }
}

/// A sleep that the quota has refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverQuota {
    /// What it says.
    pub quota: Quota,
    /// When the next try is due. Nobody tells when others give images up.
    pub until: Duration,
}

impl OverQuota {
    /// A sleep that was refused `now`.
    pub fn new(quota: Quota, now: Duration) -> Self {
        let until = now.saturating_add(POLL.1);
        Self { quota, until }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_is_for_all_images_together() {
        let quota = |used, needed| Quota {
            used,
            needed,
            share: Share::Percent(50),
            limit: 100,
        };
        assert!(!quota(60, 40).is_exceeded());
        assert!(quota(60, 41).is_exceeded());
        assert!(quota(101, 0).is_exceeded());
        assert!(quota(1, u64::MAX).is_exceeded());
        assert_eq!(
            quota(60, 41).to_string(),
            "an image of up to 41 bytes beside 60 bytes of others would exceed the quota of 50% \
             (100 bytes)"
        );
    }
}
