//! Standard streams of a container's processes.
//!
//! ```text
//!  process --pipe--> shim --FIFO, file or logger--> containerd
//! ```
//!
//! The shim makes the pipes and keeps a copy of the *process's* ends too, so that the pipes, and
//! what is in them, outlive the process while the container exists. When it ends, the copies are
//! dropped and what is left is passed on until the last writer is gone. A terminal is treated the
//! same way: the shim keeps the master, and a copy of the process's side.

mod console;
mod copy;
mod logger;
mod sink;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use log::warn;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::reaper::Reaper;
use crate::runtime::Streams;
use crate::sys;
use console::{ConsoleSocket, Master};
use logger::Logger;

pub use copy::read_some;
use sink::{HeldFifo, Sink};

/// How long a stopped process's output may take to arrive at its reader before it is given up.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why streams could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// A pipe or console socket could not be made.
    #[error("create {what}: {source}")]
    Create {
        /// What was to be made.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A FIFO or file of containerd's could not be opened.
    #[error("open {}: {source}", path.display())]
    Open {
        /// The FIFO or file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The runtime did not hand over a terminal.
    #[error("failed to retrieve console master: {source}")]
    Console {
        /// The error on the console socket.
        #[source]
        source: io::Error,
    },
    /// The logging program did not start.
    #[error("start logging binary {}: {source}", path.display())]
    Logger {
        /// The program.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The logging program ended before it said that it was ready.
    #[error("logging binary did not call ready (it may have crashed or exited prematurely)")]
    LoggerNotReady,
    /// The stream's address is in a form the shim does not know.
    #[error("unknown STDIO scheme {scheme}")]
    Scheme {
        /// The part before `://`.
        scheme: String,
    },
}

/// Addresses of a process's streams, as containerd gives them. An empty one means none.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// FIFO to read standard input from.
    pub stdin: String,
    /// FIFO path, or `file://`, `binary://` or `binary-v2://` address.
    pub stdout: String,
    /// As for standard output; ignored with a terminal.
    pub stderr: String,
    /// Whether the process has a terminal instead of pipes.
    pub terminal: bool,
}

/// Whose streams these are.
pub struct Owner<'a> {
    /// Id of the container or exec, as told to logging programs.
    pub id: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
    /// User that owns the pipes.
    pub uid: u32,
    /// Group that owns the pipes.
    pub gid: u32,
    /// Starts logging programs.
    pub reaper: &'a Reaper,
}

/// The process's own ends of its streams, kept by the shim.
#[derive(Debug, Default)]
pub struct ProcessEnds {
    /// Read end of standard input.
    pub stdin: Option<OwnedFd>,
    /// Write end of standard output.
    pub stdout: Option<OwnedFd>,
    /// Write end of standard error.
    pub stderr: Option<OwnedFd>,
    /// The process's side of its terminal.
    pub terminal: Option<OwnedFd>,
}

/// Streams that are ready to be given to a process that is about to start.
pub struct Prepared {
    addresses: Addresses,
    ends: ProcessEnds,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    console: Option<ConsoleSocket>,
    logger: Option<Logger>,
}

impl Prepared {
    /// Makes pipes, or a console socket, for one process.
    ///
    /// # Errors
    /// See [`StdioError`].
    pub async fn new(addresses: Addresses, owner: Owner<'_>) -> Result<Self, StdioError> {
        let mut prepared = Self {
            addresses,
            ends: ProcessEnds::default(),
            stdin: None,
            stdout: None,
            stderr: None,
            console: None,
            logger: None,
        };
        let program = logger::program(&prepared.addresses.stdout);
        if prepared.addresses.terminal {
            prepared.console = Some(ConsoleSocket::new()?);
            if let Some(program) = program {
                let (writer, reader) = pipe()?;
                let (_unused, error_reader) = pipe()?;
                let fds = [reader.as_fd(), error_reader.as_fd()];
                prepared.logger = Some(Logger::start(&program, &owner, fds).await?);
                prepared.stdout = Some(writer);
            }
            return Ok(prepared);
        }
        if !prepared.addresses.stdin.is_empty() {
            let (writer, reader) = pipe()?;
            chown(&reader, &owner)?;
            (prepared.stdin, prepared.ends.stdin) = (Some(writer), Some(reader));
        }
        if let Some(program) = program {
            let (out_writer, out_reader) = pipe()?;
            let (error_writer, error_reader) = pipe()?;
            let fds = [out_reader.as_fd(), error_reader.as_fd()];
            prepared.logger = Some(Logger::start(&program, &owner, fds).await?);
            prepared.ends.stdout = Some(out_writer);
            prepared.ends.stderr = Some(error_writer);
            return Ok(prepared);
        }
        if !prepared.addresses.stdout.is_empty() {
            let (writer, reader) = pipe()?;
            chown(&writer, &owner)?;
            (prepared.stdout, prepared.ends.stdout) = (Some(reader), Some(writer));
        }
        if !prepared.addresses.stderr.is_empty() {
            let (writer, reader) = pipe()?;
            chown(&writer, &owner)?;
            (prepared.stderr, prepared.ends.stderr) = (Some(reader), Some(writer));
        }
        Ok(prepared)
    }

    /// The streams to start the process with.
    ///
    /// # Errors
    /// Fails when a descriptor cannot be duplicated.
    pub fn streams(&self) -> Result<Streams, StdioError> {
        let copy = |fd: &Option<OwnedFd>| {
            fd.as_ref()
                .map(OwnedFd::try_clone)
                .transpose()
                .map_err(|source| StdioError::Create {
                    what: "copy of a process's stream",
                    source,
                })
        };
        let mut streams = Streams {
            stdin: copy(&self.ends.stdin)?,
            stdout: copy(&self.ends.stdout)?,
            stderr: copy(&self.ends.stderr)?,
            console_socket: self
                .console
                .as_ref()
                .map(|console| console.path().to_owned()),
        };
        // Without streams of its own the process has none at all: it must not write into the pipe
        // that captures the runtime's output, which nobody reads once the runtime has ended.
        if self.console.is_none() && streams.stdout.is_none() && streams.stderr.is_none() {
            streams.stdout = Some(
                std::fs::OpenOptions::new()
                    .write(true)
                    .open("/dev/null")
                    .map_err(|source| StdioError::Open {
                        path: "/dev/null".into(),
                        source,
                    })?
                    .into(),
            );
        }
        Ok(streams)
    }

    /// Gives up on a process that did not start.
    pub async fn discard(self) {
        drop(self.ends);
        if let Some(logger) = self.logger {
            logger.stop().await;
        }
    }

    /// Starts copying; the process has been started with [`Prepared::streams`].
    ///
    /// # Errors
    /// See [`StdioError`].
    pub async fn attach(mut self) -> Result<ProcessIo, StdioError> {
        let mut io = ProcessIo {
            ends: self.ends,
            stdin_writer: None,
            stdin_copy: None,
            output: Vec::new(),
            terminal: Weak::new(),
            logger: self.logger,
            input: Arc::default(),
        };
        let input = if self.addresses.stdin.is_empty() {
            None
        } else {
            let (reader, writer) = sink::open_input(&self.addresses.stdin)?;
            io.stdin_writer = Some(writer);
            Some(reader)
        };
        if let Some(console) = self.console {
            let sink = match self.stdout.take() {
                Some(pipe) => Some(Sink::pipe(pipe)?),
                None if self.addresses.stdout.is_empty() => None,
                None => Some(Sink::open(&self.addresses.stdout)?),
            };
            let (master, peer) = console.receive().await?;
            io.ends.terminal = Some(peer);
            let terminal = console::copy(master, sink, input);
            io.output.push(terminal.output);
            io.stdin_copy = terminal.input;
            io.terminal = terminal.master;
            return Ok(io);
        }
        for (reader, address) in [
            (self.stdout, &self.addresses.stdout),
            (self.stderr, &self.addresses.stderr),
        ] {
            if let Some(reader) = reader {
                io.output
                    .push(copy::pipe_to_sink(reader, Sink::open(address)?)?);
            }
        }
        if let (Some(input), Some(writer)) = (input, self.stdin) {
            io.stdin_copy = Some(copy::fifo_to_pipe(input, writer, Arc::clone(&io.input))?);
        }
        Ok(io)
    }
}

/// A pipe's write end, then its read end.
fn pipe() -> Result<(OwnedFd, OwnedFd), StdioError> {
    let (reader, writer) = io::pipe().map_err(|source| StdioError::Create {
        what: "pipe",
        source,
    })?;
    Ok((writer.into(), reader.into()))
}

fn chown(fd: &OwnedFd, owner: &Owner<'_>) -> Result<(), StdioError> {
    std::os::unix::fs::fchown(fd, Some(owner.uid), Some(owner.gid)).map_err(|source| {
        StdioError::Create {
            what: "pipe of the container's user",
            source,
        }
    })
}

/// A process's streams while it runs, and after it until they are empty.
pub struct ProcessIo {
    ends: ProcessEnds,
    stdin_writer: Option<HeldFifo>,
    stdin_copy: Option<JoinHandle<()>>,
    input: Arc<Notify>,
    output: Vec<JoinHandle<()>>,
    terminal: Weak<Master>,
    logger: Option<Logger>,
}

impl ProcessIo {
    /// The process's ends, for a process that takes the place of the one they were made for.
    #[must_use]
    pub fn ends(&self) -> &ProcessEnds {
        &self.ends
    }

    /// Told whenever input for the process has come.
    #[must_use]
    pub fn input(&self) -> Arc<Notify> {
        Arc::clone(&self.input)
    }

    /// No more input comes: the process reads end of file once it has read what was written.
    pub fn close_stdin(&mut self) {
        self.stdin_writer = None;
    }

    /// Sets the size of the process's terminal; without one nothing happens.
    ///
    /// # Errors
    /// The error of the ioctl.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match self.terminal.upgrade() {
            Some(master) => sys::set_window_size(master.get_ref().as_fd(), rows, columns),
            None => Ok(()),
        }
    }

    /// The process has ended for good: its output is passed on to the end, its input is not.
    pub fn process_exited(&mut self) {
        self.ends = ProcessEnds::default();
        if let Some(copy) = self.stdin_copy.take() {
            copy.abort();
        }
    }

    /// Waits until all output is with its reader, but no longer than 10 seconds for what other
    /// processes may still write, then closes everything. Comes after
    /// [`ProcessIo::process_exited`].
    pub async fn drain(mut self) {
        let copied = async {
            for copy in &mut self.output {
                // A copy that panicked or was aborted has nothing more to pass on.
                drop(copy.await);
            }
        };
        if tokio::time::timeout(DRAIN_TIMEOUT, copied).await.is_err() {
            warn!("output still open {DRAIN_TIMEOUT:?} after the process ended: closed");
        }
        if let Some(logger) = self.logger.take() {
            logger.stop().await;
        }
    }
}

impl Drop for ProcessIo {
    fn drop(&mut self) {
        for copy in self.output.iter().chain(&self.stdin_copy) {
            copy.abort();
        }
    }
}
