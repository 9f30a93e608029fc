//! Memory that the shim has used and does not need now, given back: there is a shim for each pod, and most of its life it
//! waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::sys;

/// What is being done now, and what is said of it, should be over by then; and a wake that comes at once finds its
/// memory where it was.
const LATER: Duration = Duration::from_secs(1);

/// Gives back what is not needed in a moment. To be called in the event loop, which is the main thread's, after
/// something that takes memory.
pub fn tidy_soon() {
    static WAITING: AtomicBool = AtomicBool::new(false);
    if !WAITING.swap(true, Ordering::Relaxed) {
        tokio::spawn(async {
            tokio::time::sleep(LATER).await;
            WAITING.store(false, Ordering::Relaxed);
            sys::trim_heap();
            sys::trim_stack();
        });
    }
}
