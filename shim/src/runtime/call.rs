//! One call of the runtime: its command line, its streams, its end, what it says of a failure.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::{Runtime, RuntimeError, Streams};
use crate::reaper::Exit;
use crate::sys;

impl Runtime {
    fn log_file(&self) -> PathBuf {
        self.bundle.join("log.json")
    }

    pub(super) fn command<A: AsRef<OsStr>>(&self, args: &[A]) -> Command {
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
    pub(super) async fn run<A: AsRef<OsStr>>(
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
    // Not by way of the receiver: it reads only when epoll has told of what is there, which can be after the end of the
    // process is known.
    while let Ok(count @ 1..) = nix::unistd::read(&output, &mut rest) {
        bytes.extend_from_slice(&rest[..count]);
    }
    (result, bytes)
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
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn what_a_process_said_last_is_not_lost() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"invalid argument").unwrap();
        let (ended, exit) = oneshot::channel();
        let ends = Exit {
            pid: 7,
            status: 1,
            at: std::time::SystemTime::now(),
        };
        ended.send(ends).unwrap();
        let reader = OwnedFd::from(reader);
        sys::set_nonblocking(&reader).unwrap();
        let output = pipe::Receiver::from_owned_fd_unchecked(reader).unwrap();
        // The writer is open: somebody else has it too.
        let (exit, said) = collect(exit, Some(output)).await;
        assert_eq!(
            (exit.unwrap().status, &said[..]),
            (1, &b"invalid argument"[..])
        );
        drop(writer);
    }

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
