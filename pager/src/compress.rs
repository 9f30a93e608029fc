//! Compressing the image of memory that is out.

use std::collections::BTreeSet;
use std::sync::mpsc;

use crate::image::CompressError;
use crate::pager::{Moved, Pager};
use crate::server::ServerError;
use crate::stats::{CompressPolicy, CompressStats};

/// An image that is being compressed. Dropping it changes nothing.
#[derive(Debug)]
pub struct Compressing {
    end: mpsc::Receiver<Result<CompressStats, CompressError>>,
}

impl Compressing {
    /// Waits until that has come to an end. None where it was given up, for a wake or another sleep,
    /// or because no process is left.
    ///
    /// # Errors
    /// When the image, or part of it, cannot be compressed. It can be used as before.
    pub fn wait(self) -> Option<Result<CompressStats, CompressError>> {
        self.end.recv().ok()
    }
}

impl Moved {
    /// Begins to compress what the image has of memory that the last wakes have not needed, in the
    /// background, for as long as memory stays out. Whatever is asked of this image next ends it at
    /// once. Another one that was under way is given up.
    ///
    /// # Errors
    /// When the thread that would do it is gone.
    pub fn compress(&self, policy: CompressPolicy) -> Result<Compressing, ServerError> {
        let (pager, server) = self.parts();
        let plain: Vec<u64> = pager.needed_slots().into_iter().collect();
        let plan = pager.pages.plan(pager.known.values(), &plain);
        let (report, end) = mpsc::channel();
        server.call(move |worker| worker.compress(plan, policy, report))?;
        Ok(Compressing { end })
    }
}

impl Pager {
    /// Slots of the pages that the last wakes have needed.
    fn needed_slots(&self) -> BTreeSet<u64> {
        let slot = |(pid, address)| self.known.get(&pid)?.get(address);
        self.working_set.pages().filter_map(slot).collect()
    }
}
