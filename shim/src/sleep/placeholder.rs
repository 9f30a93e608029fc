//! Keeps a systemd scope alive while its container has no process.
//!
//! systemd stops a scope, and removes its cgroup with all limits, as soon as its last process is
//! gone (systemd.scope(5)). While a container sleeps, a process that only waits takes the place of
//! the container's. It is this program once more, in [`ARGUMENT`] mode: its code is shared with the
//! shim, so it costs some tens of kilobytes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use log::warn;
use tokio::sync::oneshot;

use crate::{
    reaper::{Exit, Reaper},
    sys,
};

/// First argument that makes this program a placeholder.
pub const ARGUMENT: &str = "hold-cgroup";

/// A placeholder that could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("{operation} a placeholder for the sleeping container: {source}")]
pub struct PlaceholderError {
    operation: &'static str,
    #[source]
    source: io::Error,
}

/// A waiting process, killed when this is dropped. It also dies with the shim.
#[derive(Debug)]
pub struct Placeholder {
    child: Child,
    /// Its end. From then on its pid may be another's.
    reaped: oneshot::Receiver<Exit>,
}

impl Placeholder {
    /// Starts one, still outside of the container's cgroups. Must be called on the shim's main
    /// thread: the process dies with the thread that started it.
    pub fn start(reaper: &Reaper) -> Result<Self, PlaceholderError> {
        let failed = |source| PlaceholderError {
            operation: "start",
            source,
        };
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(ARGUMENT)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        sys::die_with_parent(&mut command);
        let (child, reaped) = reaper.spawn(&mut command).map_err(failed)?;
        Ok(Self { child, reaped })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// What moves it into `cgroups`, from any thread.
    pub fn entry(&self, cgroups: &[PathBuf]) -> impl Fn() -> Result<(), PlaceholderError> + use<> {
        let pid = self.child.id().to_string();
        let files: Vec<_> = cgroups
            .iter()
            .map(|cgroup| cgroup.join("cgroup.procs"))
            .collect();
        move || {
            let enter = |file: &PathBuf| fs::write(file, &pid);
            let failed = |source| PlaceholderError {
                operation: "move",
                source,
            };
            files.iter().try_for_each(enter).map_err(failed)
        }
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        if self.reaped.try_recv().is_ok() {
            return;
        }
        if let Err(error) = self.child.kill() {
            warn!("end the placeholder {}: {error}", self.child.id());
        }
    }
}

/// Waits for a signal that ends the process.
pub fn wait() -> ! {
    loop {
        nix::unistd::pause();
    }
}

/// Whether systemd runs this machine (sd_booted(3)).
pub fn systemd_is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}
