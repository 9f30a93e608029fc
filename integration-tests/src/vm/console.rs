//! What a virtual machine and its emulator say.

use std::io::{BufRead, BufReader, PipeReader};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};

/// How much of it an error repeats, in lines: of its end, and from where the kernel says that something is wrong with it.
const TAIL: usize = 40;

/// How the kernel says that. What follows is where it happened.
const TROUBLE: [&str; 5] = ["BUG:", "Oops", "WARNING:", "rcu: INFO", "Kernel panic"];

/// All lines so far, kept up to date by a thread that ends with the writer.
#[derive(Debug)]
pub(super) struct Console(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    lines: Vec<String>,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Console {
    /// Starts to read.
    pub(super) fn read(output: PipeReader) -> Self {
        let shared = Arc::new(Shared::default());
        let console = Self(Arc::clone(&shared));
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                shared.lock().lines.push(line);
                shared.changed.notify_all();
            }
            shared.lock().ended = true;
            shared.changed.notify_all();
        });
        console
    }

    /// Returns when a line has all of `words`.
    pub(super) fn wait_for(&self, words: [&str; 2], deadline: Instant) -> Result<()> {
        let mut seen = 0;
        let mut said = self.0.lock();
        loop {
            let mut new = said.lines[seen..].iter();
            if new.any(|line| words.iter().all(|word| line.contains(word))) {
                return Ok(());
            }
            seen = said.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if said.ended || left.is_zero() {
                let how = if said.ended {
                    "ended"
                } else {
                    "takes too long"
                };
                drop(said);
                bail!("it {how} before it says {words:?}:\n{}", self.tail());
            }
            let waited = self.0.changed.wait_timeout(said, left);
            said = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The last lines, after the first ones of what the kernel has said of trouble, if it has.
    pub(super) fn tail(&self) -> String {
        let said = self.0.lock();
        let (before, end) = said.lines.split_at(said.lines.len().saturating_sub(TAIL));
        let is_trouble = |line: &String| TROUBLE.iter().any(|word| line.contains(word));
        let Some(at) = before.iter().position(is_trouble) else {
            return end.join("\n");
        };
        let trouble = &before[at..before.len().min(at + TAIL)];
        [trouble, end].concat().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, Instant};

    use super::{Console, TAIL};

    #[test]
    fn a_line_is_waited_for_until_the_end() {
        let (output, mut says) = std::io::pipe().unwrap();
        let console = Console::read(output);
        let deadline = Instant::now() + Duration::from_secs(60);
        says.write_all(b"first\r\nsome more words\n").unwrap();
        console.wait_for(["some", "words"], deadline).unwrap();
        drop(says);
        let error = console.wait_for(["never", "said"], deadline).unwrap_err();
        assert!(error.to_string().contains("it ended"), "{error}");
        assert!(error.to_string().contains("first\n"), "{error}");
    }

    #[test]
    fn what_the_kernel_has_said_of_trouble_is_repeated() {
        let (output, mut says) = std::io::pipe().unwrap();
        let console = Console::read(output);
        says.write_all(b"one\nBUG: unable to handle page fault\nRIP: here\n")
            .unwrap();
        for number in 0..2 * TAIL {
            writeln!(says, "line {number}").unwrap();
        }
        drop(says);
        let deadline = Instant::now() + Duration::from_secs(60);
        console.wait_for(["line", "79"], deadline).unwrap();
        let tail = console.tail();
        assert!(
            tail.starts_with("BUG: unable to handle page fault\nRIP: here\nline 0\n"),
            "{tail}"
        );
        assert!(tail.contains("\nline 37\nline 40\n"), "{tail}");
        assert!(tail.ends_with("line 79"), "{tail}");
        assert_eq!(tail.lines().count(), 2 * TAIL);
    }
}
