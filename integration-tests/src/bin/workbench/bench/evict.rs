//! An image that is on its disk alone.

use std::fs::File;
use std::io::IoSliceMut;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::{Container, PATIENCE};
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// Has the page cache let go of the pages of a container in light sleep. The other files of its image are
/// small, and not read when it wakes.
pub fn evict(container: &Container) -> Result<()> {
    let name = format!("{}.memory/pages.img", container.id());
    let path = Path::new("/var/lib/podmotion/checkpoints").join(name);
    let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    // What is not on disk yet stays.
    file.sync_all()
        .with_context(|| format!("write {} to disk", path.display()))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        fadvise(&file, 0, None, Advice::DontNeed)
            .with_context(|| format!("let go of {}", path.display()))?;
        if !is_cached(&file).with_context(|| format!("look at {}", path.display()))? {
            return Ok(());
        }
        // The kernel passes over pages that it is doing something with, and tells nobody when that is done.
        ensure!(
            Instant::now() < deadline,
            "{} stays in the page cache",
            path.display()
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether the first page of a file can be read without its disk.
fn is_cached(file: &File) -> rustix::io::Result<bool> {
    let mut byte = [0];
    let buffers = &mut [IoSliceMut::new(&mut byte)];
    match preadv2(file, buffers, 0, ReadWriteFlags::NOWAIT) {
        Ok(read) => Ok(read > 0),
        Err(Errno::AGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}
