//! HTTP/1.1 on a connection that is kept.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use podmotion_integration_tests::Client;

/// A connection for one request after the other.
pub(super) struct Kept {
    stream: BufReader<TcpStream>,
}

impl Kept {
    pub(super) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = Client::default().connect(address)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Our address.
    pub(super) fn local(&self) -> Result<SocketAddr> {
        let local = self.stream.get_ref().local_addr();
        local.context("read our address")
    }

    /// The body of a good answer, and not a byte more.
    pub(super) fn get(&mut self, path: &str) -> Result<String> {
        ensure!(
            self.stream.buffer().is_empty(),
            "an answer nobody asked for"
        );
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
        self.stream
            .get_mut()
            .write_all(request.as_bytes())
            .context("send a request on a kept connection")?;
        let status = self.line()?;
        ensure!(
            status.starts_with("HTTP/1.1 200 "),
            "{path} on a kept connection: {status:?}"
        );
        let mut length = None;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = Some(value.trim().parse().context("parse Content-Length")?);
            }
        }
        let mut body = vec![0; length.context("no Content-Length")?];
        self.stream
            .read_exact(&mut body)
            .context("read the body on a kept connection")?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let count = self
            .stream
            .read_line(&mut line)
            .context("wait for an answer on a kept connection")?;
        ensure!(count > 0, "a kept connection was closed");
        Ok(line.trim_end().to_owned())
    }
}
