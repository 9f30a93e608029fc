//! Whether others want the processors.

use std::fs;
use std::num::NonZero;
use std::sync::OnceLock;
use std::thread;

/// So many threads for each processor want to run on a node that is busy.
const CROWDED: usize = 2;

/// Whether far more threads want to run than there are processors, at this moment. False where the
/// kernel does not tell.
pub(super) fn is_busy() -> bool {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let processors =
        PROCESSORS.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get));
    fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| runnable(&text))
        .is_some_and(|threads| threads > CROWDED * processors)
}

/// Of proc_loadavg(5) the first number of the fourth field.
fn runnable(loadavg: &str) -> Option<usize> {
    let (runnable, _) = loadavg.split_ascii_whitespace().nth(3)?.split_once('/')?;
    runnable.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_how_many_threads_want_to_run() {
        assert_eq!(runnable("5.38 3.74 2.19 7/153 29648\n"), Some(7));
        assert_eq!(runnable("5.38 3.74"), None);
        let own = fs::read_to_string("/proc/loadavg").unwrap();
        assert!(runnable(&own).is_some_and(|threads| threads > 0), "{own}");
    }
}
