//! Dry run: the container never sleeps, but once an hour its checkpoint is rehearsed when it would, and
//! whenever somebody asks for sleep.
//!
//! To the lifecycle a rehearsal is a sleep that is given up at its end. So packets are held meanwhile
//! as for any sleep, and what needs the container ends it.

use super::*;
use crate::sleep::{status::Rehearsal, trouble::Trouble};

impl Sleeper {
    /// It would sleep now.
    pub(super) fn rehearse(&mut self) {
        // The attempt reports back; nothing follows for the driver yet.
        self.event(Event::Sleep(Depth::Deep));
    }

    /// The rehearsal has come to an end, with the container as it was before: `outcome` says what a
    /// checkpoint would have come to.
    pub(super) fn rehearsed(&mut self, outcome: &Trouble) -> Outcome {
        let result = match outcome {
            Trouble::Rehearsed { written, took } => Ok((*written, *took)),
            failure => Err(Chain(failure).to_string()),
        };
        let id = &self.new.identity.id;
        match &result {
            Ok((written, took)) => info!(
                "dry run: container {id} would sleep; its checkpoint took {took:?} and {} bytes",
                written.image_bytes
            ),
            Err(why) => warn!("dry run: container {id} would sleep, but has no checkpoint: {why}"),
        }
        for asker in self.asked.drain(..) {
            drop(asker.send(Err(match &result {
                Ok(_) => Refusal::Awake(AwakeReason::DryRun.to_string()),
                Err(why) => Refusal::Sleep(why.clone()),
            })));
        }
        let at = SystemTime::now();
        self.update(|status| status.rehearsal = Some(Rehearsal { at, result }));
        self.rehearsed_at = Some(monotonic());
        self.event(Event::SleepAborted);
        self.check_soon();
        self.answer_wakers(&Ok(()));
        Outcome::Awake
    }
}
