//! The OCI runtime (runc) as a command line tool.

mod call;
mod error;
pub mod options;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::reaper::Reaper;
pub use error::RuntimeError;
use options::Options;

/// What a started process gets as its standard streams.
#[derive(Default)]
pub struct Streams {
    /// Standard input; `/dev/null` when absent.
    pub stdin: Option<OwnedFd>,
    /// Standard output; when absent the runtime's own output is captured instead.
    pub stdout: Option<OwnedFd>,
    /// Standard error, as for standard output.
    pub stderr: Option<OwnedFd>,
    /// Socket on which the runtime hands over a terminal.
    pub console_socket: Option<PathBuf>,
}

/// The runtime, set up for one container.
#[derive(Clone)]
pub struct Runtime {
    reaper: Reaper,
    binary: String,
    root: PathBuf,
    bundle: PathBuf,
    id: String,
    systemd_cgroup: bool,
    no_pivot_root: bool,
    no_new_keyring: bool,
}

impl Runtime {
    /// A runtime for the container `id` in `bundle`. `systemd_cgroup` asks for systemd's cgroup
    /// driver even where the options do not.
    #[must_use]
    pub fn new(
        reaper: Reaper,
        options: &Options,
        namespace: &str,
        id: &str,
        bundle: &Path,
        systemd_cgroup: bool,
    ) -> Self {
        Self {
            reaper,
            binary: options.binary().to_owned(),
            root: options.state_root(namespace),
            bundle: bundle.to_owned(),
            id: id.to_owned(),
            systemd_cgroup: systemd_cgroup || options.systemd_cgroup,
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
        }
    }

    /// Where the runtime keeps its record of the container.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.root.join(&self.id)
    }

    /// Whether systemd is asked for the cgroups.
    #[must_use]
    pub fn uses_systemd(&self) -> bool {
        self.systemd_cgroup
    }

    /// Creates the container and returns the pid of its first process, which waits for `start`.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn create(&self, streams: Streams) -> Result<i32, RuntimeError> {
        let pid_file = self.bundle.join("init.pid");
        let mut args: Vec<OsString> = vec![
            "create".into(),
            "--bundle".into(),
            self.bundle.clone().into(),
        ];
        args.extend(["--pid-file".into(), pid_file.clone().into()]);
        if let Some(socket) = &streams.console_socket {
            args.extend(["--console-socket".into(), socket.into()]);
        }
        if self.no_pivot_root {
            args.push("--no-pivot".into());
        }
        if self.no_new_keyring {
            args.push("--no-new-keyring".into());
        }
        args.push(self.id.clone().into());
        self.run(&args, streams).await?;
        read_pid(&pid_file)
    }

    /// Runs the user's program in the created container.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn start(&self) -> Result<(), RuntimeError> {
        self.run(&["start", &self.id], Streams::default())
            .await
            .map(drop)
    }

    /// Starts a further process, described by the JSON of an OCI process, and returns its pid.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn exec(
        &self,
        exec_id: &str,
        process: &serde_json::Value,
        streams: Streams,
    ) -> Result<i32, RuntimeError> {
        let pid_file = self.exec_pid_file(exec_id);
        let description = self.bundle.join(format!("{exec_id}.process.json"));
        let json = serde_json::to_vec(process).map_err(|source| RuntimeError::Parse {
            what: "process specification",
            source,
        })?;
        std::fs::write(&description, json).map_err(|source| RuntimeError::File {
            operation: "write",
            path: description.clone(),
            source,
        })?;
        let mut args: Vec<OsString> = vec!["exec".into(), "--process".into()];
        args.push(description.clone().into());
        if let Some(socket) = &streams.console_socket {
            args.extend(["--console-socket".into(), socket.into()]);
        }
        args.extend([
            "--detach".into(),
            "--pid-file".into(),
            pid_file.clone().into(),
        ]);
        args.push(self.id.clone().into());
        let result = self.run(&args, streams).await;
        // The runtime has read it; a leftover goes with the bundle.
        drop(std::fs::remove_file(&description));
        result?;
        read_pid(&pid_file)
    }

    /// Where the runtime leaves the pid of an exec'd process.
    #[must_use]
    pub fn exec_pid_file(&self, exec_id: &str) -> PathBuf {
        self.bundle.join(format!("{exec_id}.pid"))
    }

    /// Signals the container's first process, or all of its processes.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn kill(&self, signal: u32, all: bool) -> Result<(), RuntimeError> {
        let signal = signal.to_string();
        let mut args = vec!["kill"];
        if all {
            args.push("--all");
        }
        args.extend([self.id.as_str(), &signal]);
        self.run(&args, Streams::default()).await.map(drop)
    }

    /// Removes the stopped or merely created container; with `force` a running one too.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn delete(&self, force: bool) -> Result<(), RuntimeError> {
        let args = ["delete", "--force", &self.id];
        let args = if force {
            &args[..]
        } else {
            &[args[0], args[2]]
        };
        self.run(args, Streams::default()).await.map(drop)
    }

    /// Freezes the container.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn pause(&self) -> Result<(), RuntimeError> {
        self.run(&["pause", &self.id], Streams::default())
            .await
            .map(drop)
    }

    /// Thaws the container.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn resume(&self) -> Result<(), RuntimeError> {
        self.run(&["resume", &self.id], Streams::default())
            .await
            .map(drop)
    }

    /// Changes the container's resource limits to the JSON of an OCI `linux.resources`.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn update(&self, resources: &[u8]) -> Result<(), RuntimeError> {
        let file = |source| RuntimeError::File {
            operation: "write",
            path: "update resources".into(),
            source,
        };
        let (reader, mut writer) = io::pipe().map_err(file)?;
        // Far less than a pipe holds.
        writer.write_all(resources).map_err(file)?;
        drop(writer);
        let streams = Streams {
            stdin: Some(reader.into()),
            ..Streams::default()
        };
        self.run(&["update", "--resources=-", &self.id], streams)
            .await
            .map(drop)
    }

    /// Pids of all processes in the container, in the shim's pid namespace.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn pids(&self) -> Result<Vec<i32>, RuntimeError> {
        let output = self
            .run(&["ps", "--format", "json", &self.id], Streams::default())
            .await?;
        let pids: Option<Vec<i32>> =
            serde_json::from_slice(&output).map_err(|source| RuntimeError::Parse {
                what: "runtime's ps",
                source,
            })?;
        Ok(pids.unwrap_or_default())
    }

    /// Kills and removes the container, without a reaper: for the shim's `delete` action.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub fn force_delete(&self) -> Result<(), RuntimeError> {
        let output = self
            .command(&["delete", "--force", &self.id])
            .stdin(Stdio::null())
            .output()
            .map_err(|source| RuntimeError::Spawn {
                binary: self.binary.clone(),
                source,
            })?;
        if output.status.success() {
            return Ok(());
        }
        Err(RuntimeError::Failed {
            binary: self.binary.clone(),
            status: output.status.code().map_or(u32::MAX, i32::cast_unsigned),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
            logged: None,
        })
    }
}

fn read_pid(path: &Path) -> Result<i32, RuntimeError> {
    let file = |source| RuntimeError::File {
        operation: "read pid from",
        path: path.to_owned(),
        source,
    };
    std::fs::read_to_string(path)
        .map_err(file)?
        .trim()
        .parse()
        .map_err(|error| file(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// The pid in the bundle of a container whose shim is gone; 0 when there is none.
#[must_use]
pub fn init_pid(bundle: &Path) -> i32 {
    read_pid(&bundle.join("init.pid")).unwrap_or_default()
}
