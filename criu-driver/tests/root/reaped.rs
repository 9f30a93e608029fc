//! A CRIU that ends at once, in a process that takes every child's exit status as soon as there is one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use podmotion_criu_driver::{Criu, Error, LogLevel, hold_starts};
use rustix::process::{WaitId, WaitIdOptions, waitid};

const TRIES: usize = 100;

pub fn criu_that_ends_at_once_says_so_itself() {
    let criu = Criu::new("/bin/false", LogLevel::Error);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                {
                    let _starts = hold_starts();
                    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                    while matches!(waitid(WaitId::All, options), Ok(Some(_))) {}
                }
                thread::yield_now();
            }
        });
        for _ in 0..TRIES {
            let error = criu.version().expect_err("a version");
            if matches!(error, Error::Spawn { .. }) {
                done.store(true, Ordering::Relaxed);
                panic!("it is taken for one that was never there: {error}");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
