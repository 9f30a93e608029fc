//! Reads what a container writes, through a FIFO as containerd's own client does.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::stat::Mode;
use rustix::event::{PollFd, PollFlags, poll};

/// How long output is waited for. The first program that an emulated machine starts takes a minute to say something,
/// where others want the processors too.
const OUTPUT: Duration = Duration::from_secs(180);

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    ended: bool,
    reading: bool,
    dropped: bool,
}

#[derive(Debug, Default)]
struct Shared {
    content: Mutex<Content>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The output of one process so far.
#[derive(Debug)]
pub struct Capture {
    path: PathBuf,
    shared: Arc<Shared>,
}

impl Capture {
    /// Makes a FIFO and reads it from now on, or from [`Capture::read_on`] on.
    pub(crate) fn new(path: PathBuf, at_once: bool) -> Result<Self> {
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o700))
            .with_context(|| format!("make FIFO {}", path.display()))?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .with_context(|| format!("open FIFO {}", path.display()))?;
        let shared = Arc::new(Shared::default());
        shared.lock().reading = at_once;
        let for_thread = Arc::clone(&shared);
        thread::Builder::new()
            .name("capture".into())
            .spawn(move || read_all(file, &for_thread))
            .context("start a thread")?;
        Ok(Self { path, shared })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Starts to read, where that was put off.
    pub fn read_on(&self) {
        self.shared.lock().reading = true;
        self.shared.changed.notify_all();
    }

    /// Stops reading; what arrives stays in the pipe.
    pub fn stop_reading(&self) {
        self.shared.lock().reading = false;
    }

    /// Everything so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.shared.lock().bytes.clone()
    }

    /// Everything so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.lock().bytes).into_owned()
    }

    /// Waits until the text is somewhere in the output; an end of the output before it is an error.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        self.wait_until(&format!("{text:?} in the output"), |bytes| {
            bytes
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        })
    }

    /// Waits until the text is in the output that many times.
    pub fn wait_for_times(&self, text: &str, times: usize) -> Result<()> {
        self.wait_until(&format!("{text:?} in the output {times} times"), |bytes| {
            String::from_utf8_lossy(bytes).matches(text).count() >= times
        })
    }

    /// Waits until there are that many bytes.
    pub fn wait_for_bytes(&self, count: usize) -> Result<()> {
        self.wait_until(&format!("{count} bytes of output"), |bytes| {
            bytes.len() >= count
        })
    }

    /// Waits until nobody can write any more; returns all there was.
    pub fn wait_end(&self) -> Result<Vec<u8>> {
        let content = self.wait("the end of the output", |content| content.ended)?;
        Ok(content.bytes.clone())
    }

    fn wait_until(&self, what: &str, reached: impl Fn(&[u8]) -> bool) -> Result<()> {
        let content = self.wait(what, |content| content.ended || reached(&content.bytes))?;
        if reached(&content.bytes) {
            return Ok(());
        }
        bail!(
            "the output ended without {what}: {:?}",
            tail(&content.bytes)
        )
    }

    fn wait(&self, what: &str, done: impl Fn(&Content) -> bool) -> Result<MutexGuard<'_, Content>> {
        let deadline = Instant::now() + OUTPUT;
        let mut content = self.shared.lock();
        while !done(&content) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                bail!(
                    "no {what} in {OUTPUT:?}; so far: {:?}",
                    tail(&content.bytes)
                );
            }
            content = self
                .shared
                .changed
                .wait_timeout(content, left)
                .map_err(|_| anyhow!("the reading thread failed"))?
                .0;
        }
        Ok(content)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.lock().dropped = true;
        self.shared.changed.notify_all();
        // Opening and closing the writing end ends a reader that still waits for a first writer.
        let _ = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.path);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn tail(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(400);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}

/// A FIFO that nobody has opened for writing yet reports nothing to `poll`; one whose last writer left
/// reports a hang-up. So this ends exactly when the output does.
fn read_all(mut file: File, shared: &Shared) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut content = shared.lock();
        while !content.reading && !content.dropped {
            content = shared
                .changed
                .wait(content)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if content.dropped {
            return;
        }
        drop(content);
        let ready = poll(&mut [PollFd::new(&file, PollFlags::IN)], None);
        if ready.is_err_and(|error| error != rustix::io::Errno::INTR) {
            break;
        }
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                shared.lock().bytes.extend_from_slice(&buffer[..count]);
                shared.changed.notify_all();
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
    }
    shared.lock().ended = true;
    shared.changed.notify_all();
}
