//! CPU use over the time between two looks.

use std::time::Duration;

/// Time over which a mean says something. Looks come in pairs, such as after the answers to two probes: between the two
/// an application that has just answered has used the processor all the time.
const LEAST: Duration = Duration::from_millis(500);

/// Turns a cgroup's growing CPU time into cores in use.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CpuMeter {
    last: Option<(Duration, Duration)>,
    cores: Option<f64>,
}

impl CpuMeter {
    /// Notes that `used` CPU time was consumed in all up to `now`; returns the mean number of
    /// cores in use since the note before, and what it was then for one that comes within half a second, which is
    /// not noted. `None` for the first note, and for a counter that went back, as it does when a cgroup is made anew.
    pub fn note(&mut self, now: Duration, used: Duration) -> Option<f64> {
        let since = self.last.and_then(|(then, used_then)| {
            let wall = now.checked_sub(then)?;
            Some((wall, used.checked_sub(used_then)?))
        });
        match since {
            Some((wall, _)) if wall < LEAST => return self.cores,
            Some((wall, busy)) => self.cores = Some(busy.as_secs_f64() / wall.as_secs_f64()),
            None => self.cores = None,
        }
        self.last = Some((now, used));
        self.cores
    }
}
