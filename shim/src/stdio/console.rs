//! A process's terminal, handed over by the runtime.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use log::warn;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::StdioError;
use super::copy::{read_some, write_all};
use super::sink::{Sink, nonblocking, write_some};
use crate::sys;

/// How long the runtime may take to hand over the terminal.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(30);

/// A terminal's master side.
pub type Master = AsyncFd<OwnedFd>;

/// The socket on which the runtime hands over a terminal, in a folder of its own.
pub struct ConsoleSocket {
    // A bundle's path can be longer than a socket's may be.
    folder: PathBuf,
    path: PathBuf,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Makes the socket.
    ///
    /// # Errors
    /// See [`StdioError`].
    pub fn new() -> Result<Self, StdioError> {
        let create = |source| StdioError::Create {
            what: "console socket",
            source,
        };
        let template = std::env::temp_dir().join("podmotion-pty-XXXXXX");
        let folder = nix::unistd::mkdtemp(&template).map_err(|errno| create(errno.into()))?;
        let path = folder.join("pty.sock");
        match UnixListener::bind(&path) {
            Ok(listener) => Ok(Self {
                folder,
                path,
                listener,
            }),
            Err(error) => {
                remove(&folder);
                Err(create(error))
            }
        }
    }

    /// The socket's path, for the runtime.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal that the runtime has sent: its master, and a copy of the other side.
    ///
    /// # Errors
    /// See [`StdioError`]; gives up after 30 seconds.
    pub async fn receive(self) -> Result<(Master, OwnedFd), StdioError> {
        let console = |source| StdioError::Console { source };
        let handover = async {
            let (stream, _) = self.listener.accept().await?;
            loop {
                stream.readable().await?;
                match stream.try_io(Interest::READABLE, || sys::receive_fd(stream.as_fd())) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
            }
        };
        let master = tokio::time::timeout(HANDOVER_TIMEOUT, handover)
            .await
            .map_err(|_| console(io::ErrorKind::TimedOut.into()))?
            .map_err(console)?;
        let peer = sys::open_terminal_peer(master.as_fd()).map_err(console)?;
        Ok((
            nonblocking(master, Interest::READABLE | Interest::WRITABLE)?,
            peer,
        ))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        remove(&self.folder);
    }
}

fn remove(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder) {
        warn!("remove {}: {error}", folder.display());
    }
}

/// The tasks that copy between a terminal's master and containerd. They own the master: when both
/// have ended it is closed, which hangs the terminal up.
pub struct Terminal {
    /// The master while it is open.
    pub master: Weak<Master>,
    /// Ends when the last process has closed the terminal.
    pub output: JoinHandle<()>,
    /// Ends, and hangs the terminal up, when the input has ended.
    pub input: Option<JoinHandle<()>>,
}

/// Starts copying. Without a sink the output is read and thrown away.
pub fn copy(master: Master, sink: Option<Sink>, input: Option<AsyncFd<OwnedFd>>) -> Terminal {
    let master = Arc::new(master);
    let weak = Arc::downgrade(&master);
    let source = Arc::clone(&master);
    let output = tokio::spawn(async move {
        let sink = sink.unwrap_or(Sink::Null);
        if let Err(error) = write_all(&source, sink).await {
            warn!("copy terminal output: {error}");
        }
    });
    let hang_up = output.abort_handle();
    let input = input.map(|input| {
        tokio::spawn(async move {
            if let Err(error) = type_in(&input, &master).await {
                warn!("copy terminal input: {error}");
            }
            hang_up.abort();
        })
    });
    Terminal {
        master: weak,
        output,
        input,
    }
}

async fn type_in(input: &AsyncFd<OwnedFd>, master: &Master) -> io::Result<()> {
    let mut buffer = [0; 512];
    loop {
        let count = read_some(input, &mut buffer).await?;
        let mut typed = &buffer[..count];
        if typed.is_empty() {
            return Ok(());
        }
        while !typed.is_empty() {
            typed = &typed[write_some(master, typed).await?..];
        }
    }
}
