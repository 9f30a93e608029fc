//! Compressing the image while nothing else is to be done.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::worker::Worker;
use crate::image::{CompressError, Compression, Compressor, Plan};
use crate::stats::{CompressPolicy, CompressStats};

/// Compressing that is under way.
#[derive(Debug)]
pub(super) struct Pass {
    compressor: Compressor,
    policy: CompressPolicy,
    not_before: Instant,
    started: Instant,
    cpu_started: Duration,
    report: mpsc::Sender<Result<CompressStats, CompressError>>,
}

impl Pass {
    fn stats(&self) -> Result<CompressStats, CompressError> {
        let Compression {
            pages,
            records,
            stubborn,
            moved,
        } = self.compressor.done();
        Ok(CompressStats {
            page_bytes: pages,
            compressed_bytes: records,
            stubborn_bytes: stubborn,
            moved_bytes: moved,
            cpu_time: cpu_time().saturating_sub(self.cpu_started),
            time: self.started.elapsed(),
            image_bytes: self.compressor.disk_bytes()?,
        })
    }
}

/// Processor time of the calling thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

impl Worker {
    /// Begins to compress what `plan` says. `report` gets told how that ends, and is dropped when it
    /// is given up.
    pub(crate) fn compress(
        &mut self,
        plan: Plan,
        policy: CompressPolicy,
        report: mpsc::Sender<Result<CompressStats, CompressError>>,
    ) {
        let (started, cpu_started) = (Instant::now(), cpu_time());
        match Compressor::begin(&self.directory, &mut self.reader, plan) {
            Ok(compressor) => {
                self.pass = Some(Pass {
                    compressor,
                    policy,
                    not_before: started,
                    started,
                    cpu_started,
                    report,
                });
            }
            Err(error) => {
                // Nobody who waits no longer needs it.
                let _ = report.send(Err(error));
            }
        }
    }

    /// Gives it up. What was compressed stays so.
    pub(crate) fn stop_compressing(&mut self) {
        self.pass = None;
    }

    /// One step, if it is time for one; otherwise how long it is until then.
    pub(super) fn compress_next(&mut self, now: Instant) -> Option<Duration> {
        let pass = self.pass.as_mut()?;
        if now < pass.not_before {
            return Some(pass.not_before - now);
        }
        let step = pass.compressor.step(&self.reader);
        let ended = Instant::now();
        pass.not_before = ended + (ended - now) * pass.policy.rest;
        let result = match step {
            Ok(true) => return None,
            Ok(false) => pass.stats(),
            Err(error) => Err(error),
        };
        // Its buffers are free when it is told.
        if let Some(report) = self.pass.take().map(|pass| pass.report) {
            // Nobody who waits no longer needs it.
            let _ = report.send(result);
        }
        None
    }
}
