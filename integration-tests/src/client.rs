//! A client of the application under test: HTTP/1.1 over plain sockets, so that a test sees each
//! connection's fate.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::PATIENCE;
use crate::netns::Netns;
use crate::sys::retransmits;

/// What came back, and what it cost.
#[derive(Clone, Debug)]
pub struct Response {
    /// HTTP status code.
    pub status: u16,
    /// The body, up to the end of the connection.
    pub body: String,
    /// Our address on this connection.
    pub local: SocketAddr,
    /// Until the handshake was done.
    pub connected: Duration,
    /// Until the first byte of the answer, from the SYN on.
    pub first_byte: Duration,
    /// Segments that had to be sent again.
    pub retransmits: u32,
}

/// Where connections come from: the node, or a namespace of the harness.
#[derive(Clone, Debug, Default)]
pub struct Client {
    netns: Option<Arc<Netns>>,
}

impl Client {
    /// A client in a namespace of its own, on the same bridge as the containers.
    pub fn inside(netns: Arc<Netns>) -> Self {
        Self { netns: Some(netns) }
    }

    /// One request on a connection of its own.
    pub fn get(&self, address: SocketAddr, path: &str) -> Result<Response> {
        self.work(|| {
            let started = Instant::now();
            let stream = connect(address)?;
            let connected = started.elapsed();
            request(stream, path, started, connected)
                .with_context(|| format!("GET {path} from {address}"))
        })
    }

    /// An open connection, for tests that do more with it than one request.
    pub fn connect(&self, address: SocketAddr) -> Result<TcpStream> {
        self.work(|| connect(address))
    }

    /// That many requests at once, each on its own connection; answers in no special order.
    pub fn get_many(
        &self,
        address: SocketAddr,
        path: &str,
        count: usize,
    ) -> Result<Vec<Result<Response>>> {
        thread::scope(|scope| {
            let requests: Vec<_> = (0..count)
                .map(|_| {
                    // Hundreds at once: they need little stack.
                    thread::Builder::new()
                        .stack_size(128 * 1024)
                        .spawn_scoped(scope, || self.get(address, path))
                        .context("start a thread")
                })
                .collect::<Result<_>>()?;
            Ok(requests
                .into_iter()
                .map(|request| {
                    request
                        .join()
                        .unwrap_or_else(|_| Err(anyhow!("a client thread panicked")))
                })
                .collect())
        })
    }

    /// A socket belongs to the namespace its thread was in when it was made, so a thread is moved there.
    fn work<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let Some(netns) = &self.netns else {
            return work();
        };
        let path = netns.path();
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    let file =
                        File::open(&path).with_context(|| format!("open {}", path.display()))?;
                    setns(file, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("enter {}", path.display()))?;
                    work()
                })
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a client thread panicked")))
        })
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)
        .with_context(|| format!("connect to {address}"))?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .context("set the read timeout")?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    Ok(stream)
}

fn request(
    mut stream: TcpStream,
    path: &str,
    started: Instant,
    connected: Duration,
) -> Result<Response> {
    let local = stream.local_addr().context("read our address")?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    )
    .context("send the request")?;
    let mut answer = vec![0; 1];
    stream
        .read_exact(&mut answer)
        .context("wait for the first byte")?;
    let first_byte = started.elapsed();
    stream
        .read_to_end(&mut answer)
        .context("read the answer to its end")?;
    let retransmits = retransmits(&stream).context("read the connection's counters")?;
    let (status, body) = parse(&answer)?;
    Ok(Response {
        status,
        body,
        local,
        connected,
        first_byte,
        retransmits,
    })
}

fn parse(answer: &[u8]) -> Result<(u16, String)> {
    let text = String::from_utf8_lossy;
    let end = find(answer, b"\r\n\r\n")
        .with_context(|| format!("no end of headers in {:?}", text(answer)))?;
    let (head, body) = (text(&answer[..end]), &answer[end + 4..]);
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("no status in {head:?}"))?;
    let chunked = head
        .lines()
        .any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    let body = match chunked {
        true => &joined(body).with_context(|| format!("no whole chunks in {:?}", text(body)))?,
        false => body,
    };
    Ok((status, text(body).into_owned()))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A body that comes in chunks (RFC 9112, 7.1).
fn joined(mut chunks: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = find(chunks, b"\r\n")?;
        let size = std::str::from_utf8(&chunks[..end]).ok()?;
        let size = usize::from_str_radix(size, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let (chunk, rest) = chunks[end + 2..].split_at_checked(size)?;
        body.extend_from_slice(chunk);
        chunks = rest.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn answer_has_status_and_body() {
        let parsed = parse(b"HTTP/1.1 204 No Content\r\nA: b\r\n\r\nx\r\n\r\ny").unwrap();
        assert_eq!(parsed, (204, "x\r\n\r\ny".to_owned()));
    }

    #[test]
    fn answer_in_chunks_is_joined() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let parsed = |body: &str| parse(format!("{head}{body}").as_bytes());
        let body = parsed("3\r\nabc\r\nA\r\n\r\n34567890\r\n0\r\n\r\n");
        assert_eq!(body.unwrap(), (200, "abc\r\n34567890".to_owned()));
        assert!(parsed("3\r\nabc\r\nA\r\n\r\n345").is_err());
    }

    #[test]
    fn answer_cut_off_in_its_headers_is_an_error() {
        assert!(parse(b"HTTP/1.1 200 OK\r\nA: b").is_err());
    }
}
