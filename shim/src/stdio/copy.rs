//! Copying between pipes, without the bytes passing through the shim where the kernel can do it.
//!
//! Nothing is read before there is room for it on the other side, so a slow reader slows the
//! process down, as it would without a shim, and nothing is lost when a copy is cancelled.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use log::warn;
use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::read;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::StdioError;
use super::sink::{Sink, nonblocking};
use crate::sys;

/// Most bytes moved in one call: what a pipe holds by default.
const CHUNK: usize = 64 * 1024;
/// Buffer for what cannot be spliced.
const BUFFER: usize = 4096;

/// Copies a process's output to its reader until the last writer is gone.
///
/// # Errors
/// Fails when the pipe cannot be watched.
pub fn pipe_to_sink(source: OwnedFd, sink: Sink) -> Result<JoinHandle<()>, StdioError> {
    let source = nonblocking(source, Interest::READABLE)?;
    Ok(tokio::spawn(async move {
        let result = match sink {
            Sink::Pipe(target) => splice_all(&source, &target, || ()).await,
            other => write_all(&source, other).await,
        };
        if let Err(error) = result {
            warn!("copy output: {error}");
        }
    }))
}

/// Copies a client's input to the process until the last client and the shim have closed it, and
/// tells `arrived` about each part.
///
/// # Errors
/// Fails when the pipe cannot be watched.
pub fn fifo_to_pipe(
    source: AsyncFd<OwnedFd>,
    target: OwnedFd,
    arrived: Arc<Notify>,
) -> Result<JoinHandle<()>, StdioError> {
    let target = nonblocking(target, Interest::WRITABLE)?;
    Ok(tokio::spawn(async move {
        if let Err(error) = splice_all(&source, &target, || arrived.notify_one()).await {
            // EPIPE, a process that has closed its input, is its own choice.
            if error.kind() != io::ErrorKind::BrokenPipe {
                warn!("copy input: {error}");
            }
        }
    }))
}

async fn splice_all(
    source: &AsyncFd<OwnedFd>,
    target: &AsyncFd<OwnedFd>,
    moved: impl Fn(),
) -> io::Result<()> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        let mut readable = source.readable().await?;
        let mut writable = target.writable().await?;
        match splice(source.get_ref(), None, target.get_ref(), None, CHUNK, flags) {
            Ok(0) => return Ok(()),
            Ok(_) => moved(),
            Err(Errno::EINTR) => {}
            // One of the two is not ready, and the call does not say which.
            Err(Errno::EAGAIN) => {
                if sys::bytes_readable(source.get_ref().as_fd())? == 0 {
                    readable.clear_ready();
                } else if !can_write(target.get_ref())? {
                    writable.clear_ready();
                }
                tokio::task::yield_now().await;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn can_write(fd: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}

/// Copies to a sink that cannot be spliced to: a file opened for appending, or any sink from a
/// terminal. A terminal ends with EIO once its last user is gone.
pub async fn write_all(source: &AsyncFd<OwnedFd>, mut sink: Sink) -> io::Result<()> {
    loop {
        let mut buffer = [0; BUFFER];
        let count = read_some(source, &mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        sink.write_all(&buffer[..count]).await?;
    }
}

/// Reads what is there, waiting until there is something; 0 at the end.
pub async fn read_some(source: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = source.readable().await?;
        match ready.try_io(|fd| read(fd.get_ref(), buffer).map_err(io::Error::from)) {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    /// More than both pipes hold, in lines as a container writes them.
    fn lines() -> Vec<u8> {
        (0..60_000)
            .flat_map(|n| format!("line {n}\n").into_bytes())
            .collect()
    }

    fn fifo(dir: &tempfile::TempDir) -> PathBuf {
        let path = dir.path().join("out");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    #[tokio::test]
    async fn slow_reader_gets_everything_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(&dir);
        let (reader, mut writer) = io::pipe().unwrap();
        let copy =
            pipe_to_sink(reader.into(), Sink::open(path.to_str().unwrap()).unwrap()).unwrap();
        let (sent, received) = (lines(), lines().len());
        let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
        let reading = std::thread::spawn(move || {
            let mut fifo = std::fs::File::open(path).unwrap();
            let mut bytes = vec![0; received];
            // Odd sizes leave the FIFO's buffers partly read.
            for chunk in bytes.chunks_mut(777) {
                fifo.read_exact(chunk).unwrap();
            }
            bytes
        });
        copy.await.unwrap();
        writing.join().unwrap();
        assert!(reading.join().unwrap() == lines());
    }

    #[tokio::test]
    async fn reader_that_comes_back_misses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(&dir);
        let (reader, mut writer) = io::pipe().unwrap();
        let sink = Sink::open(path.to_str().unwrap()).unwrap();
        let copy = pipe_to_sink(reader.into(), sink).unwrap();
        let first = std::fs::File::open(&path).unwrap();
        drop(first);
        writer.write_all(b"while nobody reads\n").unwrap();
        let reading = tokio::task::spawn_blocking(move || {
            let mut second = std::fs::File::open(path).unwrap();
            let mut bytes = [0; 19];
            second.read_exact(&mut bytes).unwrap();
            bytes
        });
        assert_eq!(&reading.await.unwrap(), b"while nobody reads\n");
        drop(writer);
        copy.await.unwrap();
    }

    #[tokio::test]
    async fn cancelled_copy_leaves_the_rest_in_the_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(&dir);
        let (reader, mut writer) = io::pipe().unwrap();
        let mut kept = reader.try_clone().unwrap();
        let sink = Sink::open(path.to_str().unwrap()).unwrap();
        let copy = pipe_to_sink(reader.into(), sink).unwrap();
        let mut output = std::fs::File::open(&path).unwrap();
        let sent = lines();
        let expected = sent.clone();
        let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
        let mut bytes = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; 100_000];
            output.read_exact(&mut bytes).unwrap();
            (bytes, output)
        })
        .await
        .unwrap();
        copy.abort();
        assert!(copy.await.unwrap_err().is_cancelled());
        // The FIFO now has a reader only: its rest, then end of file.
        bytes.1.read_to_end(&mut bytes.0).unwrap();
        // The shared description is non-blocking since the copy.
        let mut all = bytes.0;
        loop {
            let mut chunk = [0; 4096];
            match kept.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => all.extend_from_slice(&chunk[..count]),
                Err(_would_block) => std::thread::yield_now(),
            }
        }
        writing.join().unwrap();
        assert!(all == expected);
    }

    #[tokio::test]
    async fn input_ends_when_the_shim_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(&dir);
        let (input, held) = super::super::sink::open_input(path.to_str().unwrap()).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let mut copy = fifo_to_pipe(input, writer.into(), Arc::default()).unwrap();
        for client in [&b"one "[..], b"two"] {
            std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .write_all(client)
                .unwrap();
        }
        let still_open = tokio::time::timeout(Duration::from_millis(50), &mut copy).await;
        assert!(still_open.is_err(), "clients come and go");
        drop(held);
        copy.await.unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
    }

    #[tokio::test]
    async fn log_file_is_made_and_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/by/the/shim.log");
        for text in ["first\n", "second\n"] {
            let (reader, mut writer) = io::pipe().unwrap();
            let sink = Sink::open(&format!("file://{}", path.display())).unwrap();
            let copy = pipe_to_sink(reader.into(), sink).unwrap();
            writer.write_all(text.as_bytes()).unwrap();
            drop(writer);
            copy.await.unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), "first\nsecond\n");
    }
}
