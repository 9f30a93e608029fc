//! Logging programs (`binary://` addresses): they read a container's output from descriptors 3
//! and 4 and say on descriptor 5 that they are ready.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use log::warn;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::{Owner, StdioError};
use crate::reaper::Exit;
use crate::sys;

/// How long a program may take to finish after it was asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);

/// What a `binary://` address says.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    path: PathBuf,
    args: Vec<String>,
    /// `binary-v2`: closing descriptor 5 without writing a byte means that it failed.
    must_say_ready: bool,
}

/// The program named by an output address, if it is of that kind: `binary:///path?name=value`.
/// Each name and value becomes an argument.
#[must_use]
pub fn program(address: &str) -> Option<Program> {
    let (scheme, rest) = address.split_once("://")?;
    let must_say_ready = match scheme {
        "binary" => false,
        "binary-v2" => true,
        _ => return None,
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut args = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        args.extend([unescape(name, true), unescape(value, true)]);
    }
    Some(Program {
        path: unescape(path, false).into(),
        args,
        must_say_ready,
    })
}

fn unescape(text: &str, plus_is_space: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let escaped = (*first == b'%')
            .then(|| std::str::from_utf8(tail.get(..2)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(match (first, escaped) {
            (_, Some(byte)) => {
                rest = &tail[2..];
                byte
            }
            (b'+', _) if plus_is_space => b' ',
            (byte, _) => *byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A running logging program.
pub struct Logger {
    pid: Pid,
    exit: oneshot::Receiver<Exit>,
}

impl Logger {
    /// Starts a program that reads from the two descriptors, and waits until it is ready.
    ///
    /// # Errors
    /// See [`StdioError`].
    pub async fn start(
        program: &Program,
        owner: &Owner<'_>,
        output: [BorrowedFd<'_>; 2],
    ) -> Result<Self, StdioError> {
        let failed = |source| StdioError::Logger {
            path: program.path.clone(),
            source,
        };
        let (ready, ready_writer) = io::pipe().map_err(failed)?;
        let mut command = Command::new(&program.path);
        command
            .args(&program.args)
            .env_clear()
            .env("CONTAINER_ID", owner.id)
            .env("CONTAINER_NAMESPACE", owner.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let [out, error] = output;
        sys::pass_fds(&mut command, &[out, error, ready_writer.as_fd()]).map_err(failed)?;
        let (child, exit) = owner.reaper.spawn(&mut command).map_err(failed)?;
        drop((ready_writer, command));
        let logger = Self {
            pid: Pid::from_raw(child.id().cast_signed()),
            exit,
        };
        sys::set_nonblocking(&ready).map_err(|errno| failed(errno.into()))?;
        let mut ready = pipe::Receiver::from_owned_fd(ready.into()).map_err(failed)?;
        let said = ready.read(&mut [0]).await.map_err(failed)?;
        if said == 0 && program.must_say_ready {
            logger.stop().await;
            return Err(StdioError::LoggerNotReady);
        }
        Ok(logger)
    }

    /// Asks the program to finish; one that does not is killed.
    pub async fn stop(mut self) {
        if let Ok(_) | Err(oneshot::error::TryRecvError::Closed) = self.exit.try_recv() {
            return;
        }
        if let Err(errno) = kill(self.pid, Signal::SIGTERM) {
            warn!("terminate logging binary {}: {errno}", self.pid);
            return;
        }
        if tokio::time::timeout(STOP_TIMEOUT, &mut self.exit)
            .await
            .is_err()
        {
            warn!("logging binary {} did not end: killed", self.pid);
            // It has not been waited for, so the pid is still its own.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_with_arguments() {
        let expected = Program {
            path: "/opt/my logger".into(),
            args: vec![
                "log-path".into(),
                "/var/log/a b".into(),
                "quiet".into(),
                String::new(),
            ],
            must_say_ready: false,
        };
        let address = "binary:///opt/my%20logger?log-path=%2Fvar%2Flog%2Fa+b&quiet";
        assert_eq!(program(address), Some(expected));
        assert!(program("binary-v2:///bin/cat").unwrap().must_say_ready);
        assert_eq!(program("file:///tmp/log"), None);
        assert_eq!(program("/run/fifo"), None);
    }
}
