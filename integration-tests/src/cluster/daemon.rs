//! One program of a cluster, running until it is dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::machine::Machine;
use crate::process::MARK;
use crate::room::{Room, spawn_in};

/// A program whose output goes to a file.
#[derive(Debug)]
pub(super) struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts `command`, in `room` if there is one; what it says goes to `<folder>/<name>.log`.
    pub(super) fn start(
        name: &str,
        folder: &Path,
        room: Option<&Room>,
        mut command: Command,
    ) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let errors = file.try_clone().context("share the log file")?;
        command
            .env(MARK, Machine::get()?.name())
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors);
        let child = spawn_in(room, command)?;
        Ok(Self {
            name: name.to_owned(),
            log,
            child,
        })
    }

    /// Fails once it has ended, with what it said last.
    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("look after a program")? {
            bail!("{status}: {}", self.log_tail());
        }
        Ok(())
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        // It may have ended by itself.
        let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
        let _ = self.child.wait();
    }

    /// What it said last, under its name.
    pub(super) fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        format!("{}:\n{tail}", self.name)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // None of them has anything to bring to an end that would outlive the machine.
        self.kill();
    }
}
