//! Turns: of a node's containers as many fall asleep at a time as it has processors.
//!
//! More at a time would not be faster, and each would stand still for longer. Of a hundred that have become idle in the same
//! moment some would not even come to a standstill in the time that there is for it.
//!
//! A turn is a byte of the file `.lock` in the directory of the checkpoints, locked for as long as the sleep takes. The
//! kernel gives the lock back whatever becomes of the shim. It is one of an open file description (fcntl_locking(2)), which
//! the lock of the whole file that is held while somebody counts ([`super::quota`]) does not exclude.

use std::{
    fs::File,
    io,
    num::NonZero,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};
use podmotion_criu_driver::{DumpControl, images};

use super::{
    quota::LOCK,
    shared::{SharedError, failed, open},
    trouble::Trouble,
};

/// How long one waits. Some that are large must not keep all others awake.
const PATIENCE: Duration = Duration::from_secs(5);

/// When to try again: nobody tells of a lock that is given back, and who waits for one by a system call cannot be
/// called off.
const AGAIN: Duration = Duration::from_millis(5);

/// Somebody's turn. Goes with its owner.
#[derive(Debug)]
pub struct Turn {
    file: File,
    number: usize,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Not left to the end of the last copy of the descriptor, which a child may have.
        if let Err(cause) = lock(&self.file, self.number, libc::F_UNLCK) {
            log::warn!("give a turn back: {cause}");
        }
    }
}

/// Waits for a turn for the container with the image directory `images`. None when it has waited for long enough, and
/// may go on without.
///
/// # Errors
/// [`Trouble::Aborted`] when `control` says so meanwhile; else when the file cannot be locked.
pub fn take(images: &Path, control: &DumpControl) -> Result<Option<Turn>, Trouble> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    take_one_of(processors, images, PATIENCE, control)
}

fn take_one_of(
    turns: usize,
    images: &Path,
    patience: Duration,
    control: &DumpControl,
) -> Result<Option<Turn>, Trouble> {
    let Some(directory) = images.parent() else {
        return Ok(None);
    };
    images::make(directory).map_err(SharedError::from)?;
    let path = directory.join(LOCK);
    let file = open(&path)?;
    let deadline = Instant::now() + patience;
    loop {
        for number in 0..turns {
            if lock(&file, number, libc::F_WRLCK).map_err(failed("lock", &path))? {
                return Ok(Some(Turn { file, number }));
            }
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        if control.aborted_within(AGAIN) {
            return Err(Trouble::Aborted);
        }
    }
}

/// False where another has it.
fn lock(file: &File, number: usize, kind: libc::c_int) -> io::Result<bool> {
    let byte = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: number as libc::off_t,
        l_len: 1,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&byte)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(cause) => Err(cause.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_have_a_turn_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let images = directory.path().join("container");
        let control = DumpControl::new().unwrap();
        let take = |patience| take_one_of(2, &images, patience, &control).unwrap();
        let first = take(Duration::ZERO).unwrap();
        let second = take(Duration::ZERO).unwrap();
        assert_ne!(first.number, second.number);
        assert!(take(Duration::ZERO).is_none(), "it goes on without");
        let third = thread::scope(|scope| {
            let third = scope.spawn(|| take(Duration::from_secs(60)));
            drop(first);
            third.join().unwrap()
        });
        assert_ne!(third.unwrap().number, second.number);
    }

    #[test]
    fn whoever_is_wanted_does_not_wait() {
        let directory = tempfile::tempdir().unwrap();
        let images = directory.path().join("container");
        let control = DumpControl::new().unwrap();
        let take = || take_one_of(1, &images, Duration::from_secs(60), &control);
        let _first = take().unwrap().unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(take);
            control.abort();
            let outcome = second.join().unwrap();
            assert!(matches!(outcome, Err(Trouble::Aborted)), "{outcome:?}");
        });
    }

    #[test]
    fn whoever_counts_keeps_nobody_from_a_turn() {
        let directory = tempfile::tempdir().unwrap();
        let counting = open(&directory.path().join(LOCK)).unwrap();
        counting.lock().unwrap();
        let control = DumpControl::new().unwrap();
        let images = directory.path().join("container");
        let turn = take_one_of(1, &images, Duration::ZERO, &control).unwrap();
        assert!(turn.is_some());
    }
}
