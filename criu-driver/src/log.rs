//! CRIU's log: finding the line that says why.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Only this much of a log's end is read: errors come last, and a log at debug level can be large.
const TAIL: u64 = 256 * 1024;

/// The error lines of a CRIU log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogErrors {
    /// The first error: CRIU unwinds after it, so this is the cause. Without time stamp and pid:
    /// `Error (criu/files.c:123): ...`.
    pub first: Option<String>,
    /// The last error that differs from the first one and is not a mere "FAILED" summary.
    pub last: Option<String>,
}

impl LogErrors {
    /// Text to put behind a message: `: Error (...)...`, or nothing.
    pub(crate) fn suffix(&self) -> String {
        match (&self.first, &self.last) {
            (Some(first), _) => format!(": {first}"),
            (None, Some(last)) => format!(": {last}"),
            (None, None) => String::new(),
        }
    }

    /// Fills in `line` as the cause where the log has none.
    pub(crate) fn or_first(mut self, line: Option<String>) -> Self {
        if self.first.is_none() {
            self.first = line.filter(|l| !l.trim().is_empty() && !is_harmless(l));
        }
        self
    }
}

/// Reads the error lines of the log at `path`; a log that is not there has none.
pub fn read(path: &Path) -> LogErrors {
    tail(path).map(|text| parse(&text)).unwrap_or_default()
}

/// The end of a log as text.
pub(crate) fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Picks the error lines out of a log's text.
pub fn parse(text: &str) -> LogErrors {
    let mut errors = LogErrors::default();
    for line in text
        .lines()
        .filter_map(error_of)
        .filter(|line| !is_harmless(line))
    {
        if errors.first.is_none() {
            errors.first = Some(line.to_owned());
        } else if !is_summary(line) && errors.first.as_deref() != Some(line) {
            errors.last = Some(line.to_owned());
        }
    }
    errors
}

/// `(00.012345)  12345: Error (criu/x.c:1): text` without what stands before `Error`.
fn error_of(line: &str) -> Option<&str> {
    let rest = line.strip_prefix('(').map_or(line, |stamped| {
        stamped.split_once(')').map_or(line, |(_, rest)| rest)
    });
    let rest = rest.trim_start();
    let rest = match rest.split_once(": ") {
        Some((pid, rest)) if !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit()) => rest,
        _ => rest,
    };
    // A prefix of the module can stand before it: "tcp: Error (...)", "mnt: Error (...)".
    let start = rest.find("Error (")?;
    let prefix = &rest[..start];
    let is_prefix = prefix.is_empty() || prefix.ends_with(": ") || prefix.trim().is_empty();
    is_prefix.then(|| rest[start..].trim_end())
}

fn is_summary(line: &str) -> bool {
    line.ends_with("Dumping FAILED.") || line.ends_with("Restoring FAILED.")
}

/// CRIU logs it as an error and goes on: without CAP_SYS_RESOURCE the limit stays as it is.
fn is_harmless(line: &str) -> bool {
    line.contains("Can't setup RLIMIT_NOFILE")
}

#[cfg(test)]
mod tests;
