//! The OCI runtime (runc) as a command line tool.

pub mod options;
pub mod spec;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::reaper::{Exit, Reaper};
use crate::sys;
use options::Options;

/// Why a call of the runtime did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The binary could not be started.
    #[error("start {binary}: {source}")]
    Spawn {
        /// The binary's path or name.
        binary: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// It ran and failed.
    #[error("{binary} did not terminate successfully: exit status {status}: {output}")]
    Failed {
        /// The binary's path or name.
        binary: String,
        /// Its exit status.
        status: u32,
        /// What it wrote to its standard streams, when these were not the container's.
        output: String,
        /// The last error in its log, when it wrote one.
        logged: Option<String>,
    },
    /// It could not be waited for.
    #[error("wait for {binary}: the shim is shutting down")]
    Lost {
        /// The binary's path or name.
        binary: String,
    },
    /// A file for it could not be written, or one of its files not be read.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Its output or one of its files is not what was expected.
    #[error("parse {what}: {source}")]
    Parse {
        /// The output or file.
        what: &'static str,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
}

impl RuntimeError {
    /// The error as a user should read it: the runtime's own message when it logged one.
    #[must_use]
    pub fn message(&self) -> String {
        match self {
            Self::Failed {
                logged: Some(message),
                ..
            } => message.clone(),
            other => other.to_string(),
        }
    }
}

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

    fn log_file(&self) -> PathBuf {
        self.bundle.join("log.json")
    }

    fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.root);
        command
            .arg("--log")
            .arg(self.log_file())
            .args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.args(args);
        // With it runc would take itself for a systemd service and wait for its container.
        command.env_remove("NOTIFY_SOCKET");
        sys::die_with_parent(&mut command);
        command
    }

    /// Runs the runtime to its end and returns what it wrote where its output is not the
    /// container's.
    async fn run<A: AsRef<OsStr>>(
        &self,
        args: &[A],
        streams: Streams,
    ) -> Result<Vec<u8>, RuntimeError> {
        let spawn = |source| RuntimeError::Spawn {
            binary: self.binary.clone(),
            source,
        };
        let log_start = std::fs::metadata(self.log_file()).map_or(0, |log| log.len());
        let captures = streams.stdout.is_none() && streams.stderr.is_none();
        let mut command = self.command(args);
        command.stdin(streams.stdin.map_or_else(Stdio::null, Stdio::from));
        command.stdout(streams.stdout.map_or_else(Stdio::null, Stdio::from));
        command.stderr(streams.stderr.map_or_else(Stdio::null, Stdio::from));
        let output = if captures {
            let (reader, writer) = io::pipe().map_err(spawn)?;
            command
                .stdout(writer.try_clone().map_err(spawn)?)
                .stderr(writer);
            let reader = OwnedFd::from(reader);
            sys::set_nonblocking(&reader).map_err(|errno| spawn(errno.into()))?;
            Some(pipe::Receiver::from_owned_fd_unchecked(reader).map_err(spawn)?)
        } else {
            None
        };
        let (_, exit) = self.reaper.spawn(&mut command).map_err(spawn)?;
        // Closes the shim's copies of the streams given away.
        drop(command);
        let (exit, output) = collect(exit, output).await;
        let exit = exit.map_err(|_| RuntimeError::Lost {
            binary: self.binary.clone(),
        })?;
        if exit.status == 0 {
            return Ok(output);
        }
        Err(RuntimeError::Failed {
            binary: self.binary.clone(),
            status: exit.status,
            output: String::from_utf8_lossy(&output).into_owned(),
            logged: last_logged_error(&self.log_file(), log_start),
        })
    }
}

/// Waits for a process and reads its output as it comes, for as long as the process is there:
/// something that it leaves behind may hold the pipe open for ever.
async fn collect(
    exit: oneshot::Receiver<Exit>,
    output: Option<pipe::Receiver>,
) -> (Result<Exit, oneshot::error::RecvError>, Vec<u8>) {
    let mut bytes = Vec::new();
    let Some(mut output) = output else {
        return (exit.await, bytes);
    };
    let mut exit = exit;
    let result = loop {
        tokio::select! {
            biased;
            read = output.read_buf(&mut bytes) => match read {
                Ok(0) | Err(_) => break exit.await,
                Ok(_) => {}
            },
            result = &mut exit => break result,
        }
    };
    let mut rest = [0; 4096];
    while let Ok(count @ 1..) = output.try_read(&mut rest) {
        bytes.extend_from_slice(&rest[..count]);
    }
    (result, bytes)
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

/// The last error that the runtime logged from an offset on.
fn last_logged_error(log: &Path, from: u64) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let mut file = File::open(log).ok()?;
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.lines()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .filter(|line| line.level == "error")
        .map(|line| line.msg.trim().to_owned())
        .next_back()
        .filter(|message| !message.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_error_of_this_call_only() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log.json");
        let old = "{\"level\":\"error\",\"msg\":\"old\",\"time\":\"t\"}\n";
        let new = "{\"level\":\"error\",\"msg\":\"first\",\"time\":\"t\"}\n\
                   {\"level\":\"warning\",\"msg\":\"w\",\"time\":\"t\"}\nnot json\n\
                   {\"level\":\"error\",\"msg\":\" exec failed: no such file\\n\",\"time\":\"t\"}\n";
        std::fs::write(&log, format!("{old}{new}")).unwrap();
        let from = old.len() as u64;
        assert_eq!(
            last_logged_error(&log, from).unwrap(),
            "exec failed: no such file"
        );
        assert_eq!(
            last_logged_error(&log, (old.len() + new.len()) as u64),
            None
        );
    }
}
