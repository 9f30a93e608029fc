//! An HTTP connection that stays open over several requests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podmotion_integration_tests::Client;
use serde_json::Value;

/// The connection, after any number of answers.
pub struct Kept {
    stream: BufReader<TcpStream>,
}

impl Kept {
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = BufReader::new(Client::default().connect(address)?);
        Ok(Self { stream })
    }

    /// Our address on it.
    pub fn local(&self) -> Result<SocketAddr> {
        let local = self.stream.get_ref().local_addr();
        local.context("read our address")
    }

    /// Asks once. The answer, and the time until its first byte.
    pub fn get(&mut self, path: &str) -> Result<(Value, Duration)> {
        let started = Instant::now();
        let request = format!("GET {path} HTTP/1.1\r\nHost: demo\r\n\r\n");
        let mut socket = self.stream.get_ref();
        socket
            .write_all(request.as_bytes())
            .context("send the request")?;
        self.stream.fill_buf().context("wait for the first byte")?;
        let first_byte = started.elapsed();
        let mut body = vec![0; self.read_head()?];
        self.stream
            .read_exact(&mut body)
            .context("read the answer")?;
        let answer = serde_json::from_slice(&body).context("parse the answer")?;
        Ok((answer, first_byte))
    }

    /// Reads the headers and returns the length of what follows.
    fn read_head(&mut self) -> Result<usize> {
        let mut length = None;
        loop {
            let mut line = String::new();
            let read = self.stream.read_line(&mut line);
            read.context("read a header")?;
            let line = line.trim_end();
            if line.is_empty() {
                return length.context("an answer without Content-Length");
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse().context("parse Content-Length")?);
            }
        }
    }
}
