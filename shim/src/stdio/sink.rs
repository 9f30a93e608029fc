//! The far side of a stream: what containerd opened for it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::write;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::StdioError;
use crate::sys;

/// A FIFO kept open only so that its readers see no end of file.
pub type HeldFifo = OwnedFd;

/// Where output goes.
pub enum Sink {
    /// A FIFO or pipe with a reader that may be slow, or absent for a while.
    Pipe(AsyncFd<OwnedFd>),
    /// A regular file.
    File(File),
    /// Nowhere.
    Null,
}

impl Sink {
    /// Opens what an output address names: a FIFO or file by its path, or a `file://` address,
    /// whose file and folder are made when missing.
    ///
    /// # Errors
    /// See [`StdioError`].
    pub fn open(address: &str) -> Result<Self, StdioError> {
        let path = match address.split_once("://") {
            None => Path::new(address),
            Some(("fifo", path)) => Path::new(path),
            Some(("file", path)) => return Self::open_log(Path::new(path)),
            Some((scheme, _)) => {
                return Err(StdioError::Scheme {
                    scheme: scheme.to_owned(),
                });
            }
        };
        let open = |source| StdioError::Open {
            path: path.to_owned(),
            source,
        };
        if !fs::metadata(path).map_err(open)?.file_type().is_fifo() {
            let file = OpenOptions::new().append(true).open(path).map_err(open)?;
            return Ok(Self::File(file));
        }
        // Read and write: the shim is its own reader as far as the kernel is concerned, so a
        // reader that goes away breaks nothing, and what it has not read waits for the next one.
        let fifo = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(open)?;
        Ok(Self::Pipe(
            sys::event_source(fifo.into(), Interest::WRITABLE).map_err(open)?,
        ))
    }

    fn open_log(path: &Path) -> Result<Self, StdioError> {
        let open = |source| StdioError::Open {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(open)?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o644)
            .open(path)
            .map_err(open)?;
        Ok(Self::File(file))
    }

    /// A pipe that the shim made itself.
    ///
    /// # Errors
    /// See [`StdioError`].
    pub fn pipe(writer: OwnedFd) -> Result<Self, StdioError> {
        Ok(Self::Pipe(nonblocking(writer, Interest::WRITABLE)?))
    }

    /// Writes all of `bytes`, waiting for the reader where there is one.
    ///
    /// # Errors
    /// The error of the write; what was not written is lost.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Null => Ok(()),
            Self::File(file) => file.write_all(bytes),
            Self::Pipe(fifo) => {
                while !bytes.is_empty() {
                    let written = write_some(fifo, bytes).await?;
                    bytes = &bytes[written..];
                }
                Ok(())
            }
        }
    }
}

/// Writes what fits, waiting until something does.
pub async fn write_some(fd: &AsyncFd<OwnedFd>, bytes: &[u8]) -> io::Result<usize> {
    loop {
        let mut ready = fd.writable().await?;
        let attempt = ready.try_io(|fd| match write(fd.get_ref(), bytes) {
            Err(Errno::EINTR) => Ok(0),
            other => other.map_err(io::Error::from),
        });
        if let Ok(result) = attempt {
            return result;
        }
    }
}

/// Makes a descriptor usable with the event loop.
pub fn nonblocking(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, StdioError> {
    let create = |source| StdioError::Create {
        what: "event source",
        source,
    };
    sys::set_nonblocking(&fd).map_err(|errno| create(errno.into()))?;
    sys::event_source(fd, interest).map_err(create)
}

/// Opens the FIFO that standard input comes from, and a writer of the shim's own that keeps it
/// from ending while clients come and go: the input ends when that writer and the clients' are
/// closed.
///
/// # Errors
/// See [`StdioError`].
pub fn open_input(path: &str) -> Result<(AsyncFd<OwnedFd>, HeldFifo), StdioError> {
    let path = Path::new(path.strip_prefix("fifo://").unwrap_or(path));
    let open = |source| StdioError::Open {
        path: path.to_owned(),
        source,
    };
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_NONBLOCK);
    let reader = options.clone().read(true).open(path).map_err(open)?;
    let writer = options.write(true).open(path).map_err(open)?;
    let reader = sys::event_source(reader.into(), Interest::READABLE).map_err(open)?;
    Ok((reader, writer.into()))
}
