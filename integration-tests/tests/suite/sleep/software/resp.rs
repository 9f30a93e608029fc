//! A client that speaks redis' protocol, RESP2.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::Client;

/// A connection to a redis server.
pub(super) struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    pub(super) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = Client::default().connect(address)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// The values of the answer; one where it is no list.
    pub(super) fn command(&mut self, words: &[&str]) -> Result<Vec<String>> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.stream
            .get_mut()
            .write_all(request.as_bytes())
            .with_context(|| format!("send {}", words[0]))?;
        self.answer()
            .with_context(|| format!("answer to {}", words[0]))
    }

    /// The next thing that the server says.
    pub(super) fn answer(&mut self) -> Result<Vec<String>> {
        let line = self.line()?;
        match line.strip_prefix('*') {
            Some(count) => {
                let count: usize = count.parse().context("parse a list's length")?;
                (0..count)
                    .map(|_| {
                        let line = self.line()?;
                        self.value(&line)
                    })
                    .collect()
            }
            None => Ok(vec![self.value(&line)?]),
        }
    }

    /// What the server drew when it started.
    pub(super) fn run_id(&mut self) -> Result<String> {
        let info = self.command(&["INFO", "server"])?.concat();
        let id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        Ok(id.context("no run_id")?.to_owned())
    }

    fn value(&mut self, line: &str) -> Result<String> {
        let (kind, rest) = line.split_at_checked(1).context("an empty answer")?;
        match kind {
            "+" | ":" => Ok(rest.to_owned()),
            "$" => {
                let length: usize = rest.parse().context("parse a value's length")?;
                let mut bytes = vec![0; length + 2];
                self.stream.read_exact(&mut bytes).context("read a value")?;
                bytes.truncate(length);
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            _ => bail!("the server says {line:?}"),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let count = self.stream.read_line(&mut line).context("wait for redis")?;
        ensure!(count > 0, "redis closed the connection");
        Ok(line.trim_end().to_owned())
    }
}
