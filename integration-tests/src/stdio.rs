//! The three streams of one process, as containerd wants them: names of FIFOs or a URI.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::stat::Mode;

use crate::app::{Stdin, Stdout};
use crate::capture::Capture;

/// The harness's ends.
#[derive(Debug)]
pub(crate) struct Stdio {
    stdin: Option<(PathBuf, Option<File>)>,
    stdout: Option<Capture>,
    stderr: Option<Capture>,
    uri: Option<String>,
}

impl Stdio {
    /// `base` is a path that FIFO names start with; it must be new.
    pub(crate) fn new(base: &Path, stdin: Stdin, stdout: &Stdout, terminal: bool) -> Result<Self> {
        let stdin = match stdin {
            Stdin::Null => None,
            Stdin::Pipe => {
                let path = base.with_extension("in");
                nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o700))
                    .with_context(|| format!("make FIFO {}", path.display()))?;
                // Open for both, so that it neither waits for the shim nor fails without it.
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&path)
                    .with_context(|| format!("open FIFO {}", path.display()))?;
                Some((path, Some(file)))
            }
        };
        let mut stdio = Self {
            stdin,
            stdout: None,
            stderr: None,
            uri: None,
        };
        match stdout {
            Stdout::Null => {}
            Stdout::File(path) => stdio.uri = Some(format!("file://{}", path.display())),
            Stdout::Captured | Stdout::CapturedLater => {
                let at_once = *stdout == Stdout::Captured;
                stdio.stdout = Some(Capture::new(base.with_extension("out"), at_once)?);
                // A terminal has one output.
                if !terminal {
                    stdio.stderr = Some(Capture::new(base.with_extension("err"), at_once)?);
                }
            }
        }
        Ok(stdio)
    }

    pub(crate) fn stdin_name(&self) -> String {
        self.stdin
            .as_ref()
            .map_or_else(String::new, |(path, _)| path.display().to_string())
    }

    pub(crate) fn stdout_name(&self) -> String {
        self.name(self.stdout.as_ref())
    }

    pub(crate) fn stderr_name(&self) -> String {
        self.name(self.stderr.as_ref())
    }

    fn name(&self, capture: Option<&Capture>) -> String {
        match (&self.uri, capture) {
            (Some(uri), _) => uri.clone(),
            (None, Some(capture)) => capture.path().display().to_string(),
            (None, None) => String::new(),
        }
    }

    pub(crate) fn stdout(&self) -> Result<&Capture> {
        self.stdout
            .as_ref()
            .context("standard output is not captured")
    }

    pub(crate) fn stderr(&self) -> Result<&Capture> {
        self.stderr
            .as_ref()
            .context("standard error is not captured")
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        let Some((_, Some(file))) = &self.stdin else {
            bail!("standard input is not open");
        };
        let mut file = file;
        file.write_all(bytes).context("write to standard input")
    }

    pub(crate) fn close_stdin(&mut self) {
        if let Some((_, file)) = &mut self.stdin {
            *file = None;
        }
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.stdin {
            let _ = std::fs::remove_file(path);
        }
    }
}
