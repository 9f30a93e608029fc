//! Sleep and wake on request.

use std::time::Duration;

use super::{Found, Shim, ShimError};
use crate::shim::v1::Container;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// To sleep.
    Sleep,
    /// To wake.
    Wake,
}

impl Verb {
    /// Its name on command lines, in addresses and in rules about who may do it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sleep => "sleep",
            Self::Wake => "wake",
        }
    }

    fn has_changed(self, before: &Container, after: &Container) -> bool {
        match self {
            Self::Sleep => before.counters.sleeps != after.counters.sleeps,
            Self::Wake => before.counters.wakes != after.counters.wakes,
        }
    }
}

/// What became of it.
#[derive(Debug)]
pub struct Asked {
    /// The container, as it was last seen: afterwards, or before where it failed.
    pub found: Found,
    /// It was not so before.
    pub changed: bool,
    /// Why it is not so now.
    pub error: Option<ShimError>,
}

/// Asks for sleep or for a wake; returns when it is so, or cannot be.
pub async fn ask(before: Found, verb: Verb, within: Duration) -> Asked {
    let id = &before.container.id;
    let asked = async {
        let shim = Shim::connect(&before.socket).await?;
        match verb {
            Verb::Sleep => shim.sleep(id, within).await?,
            Verb::Wake => shim.wake(id, within).await?,
        }
        shim.inspect(id).await
    };
    match asked.await {
        Ok(after) => Asked {
            changed: verb.has_changed(&before.container, &after),
            found: Found::new(&before.socket, after),
            error: None,
        },
        Err(error) => Asked {
            found: before,
            changed: false,
            error: Some(error),
        },
    }
}
