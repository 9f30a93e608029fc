//! CPU use over the time between two looks.

use std::time::Duration;

/// Turns a cgroup's growing CPU time into cores in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuMeter {
    last: Option<(Duration, Duration)>,
}

impl CpuMeter {
    /// Notes that `used` CPU time was consumed in all up to `now`; returns the mean number of
    /// cores in use since the note before. `None` for the first note, for one at the same
    /// moment, and for a counter that went back, as it does when a cgroup is made anew.
    pub fn note(&mut self, now: Duration, used: Duration) -> Option<f64> {
        let (then, used_then) = self.last.replace((now, used))?;
        let wall = now.checked_sub(then).filter(|wall| !wall.is_zero())?;
        let busy = used.checked_sub(used_then)?;
        Some(busy.as_secs_f64() / wall.as_secs_f64())
    }
}
