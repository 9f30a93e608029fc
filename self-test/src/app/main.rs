//! What the self-test puts to sleep, the client that wakes it, and the process that keeps a pod's namespaces.
//!
//! ```text
//! podmotion-self-test-app pause             waits to be killed
//! podmotion-self-test-app serve PORT MEBIBYTES   counts its connections in memory, and keeps that much of it
//! podmotion-self-test-app request PORT      connects once; ends with the count as its exit code
//! podmotion-self-test-app --version         says which it is
//! ```
//!
//! The exit code is the client's whole answer: it has no file and no stream that the self-test could read on every node.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// The largest count that an exit code tells.
const COUNTS: u8 = 99;
/// Exit codes of a client that got no count, see `podmotion_self_test`.
const NOT_CONNECTED: u8 = 101;
const NO_ANSWER: u8 = 102;
const NOT_UNDERSTOOD: u8 = 103;
const OTHER_ADDRESS: u8 = 104;
const DAMAGED: u8 = 105;
/// Of a program that was called in a wrong way, or that could not begin.
const WRONG: u8 = 110;

/// For the server to listen, and for its answer: a wake on an overloaded node takes seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// Nothing tells when a port is listened on.
const PAUSE: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let code = match words[..] {
        ["pause"] => loop {
            thread::park();
        },
        ["serve", port, mebibytes] => serve(port, mebibytes),
        ["request", port] => request(port),
        ["--version"] => version(),
        _ => Err(WRONG),
    };
    ExitCode::from(code.unwrap_or_else(|code| code))
}

fn version() -> Result<u8, u8> {
    let line = concat!("podmotion-self-test-app ", env!("CARGO_PKG_VERSION"), "\n");
    let written = io::stdout().write_all(line.as_bytes());
    written.map(|()| 0).map_err(|_| WRONG)
}

/// Every word of it differs from its neighbours, so that a page in a wrong place shows.
fn pattern(index: usize) -> u64 {
    (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1
}

fn serve(port: &str, mebibytes: &str) -> Result<u8, u8> {
    let (Ok(port), Ok(mebibytes)) = (port.parse(), mebibytes.parse::<usize>()) else {
        return Err(WRONG);
    };
    let words = (mebibytes << 20) / size_of::<u64>();
    let memory: Vec<u64> = (0..words).map(pattern).collect();
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).map_err(|_| WRONG)?;
    let mut count = 0_u64;
    loop {
        // A client that is gone again is counted all the same.
        let Ok((mut client, address)) = listener.accept() else {
            continue;
        };
        count += 1;
        let mut words = std::hint::black_box(&memory).iter().enumerate();
        let state = match words.all(|(index, word)| *word == pattern(index)) {
            true => "whole",
            false => "damaged",
        };
        drop(writeln!(client, "{count} {address} {state}"));
    }
}

fn request(port: &str) -> Result<u8, u8> {
    let port = port.parse().map_err(|_| WRONG)?;
    let mut server = connect(port).map_err(|_| NOT_CONNECTED)?;
    let own = server.local_addr().map_err(|_| NO_ANSWER)?.to_string();
    let mut answer = String::new();
    server
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| server.read_to_string(&mut answer))
        .map_err(|_| NO_ANSWER)?;
    let words: Vec<&str> = answer.trim_end().split(' ').collect();
    let [count, client, state] = words[..] else {
        return Err(NOT_UNDERSTOOD);
    };
    if client != own {
        return Err(OTHER_ADDRESS);
    }
    if state != "whole" {
        return Err(DAMAGED);
    }
    match count.parse() {
        Ok(count) if (1..=COUNTS).contains(&count) => Ok(count),
        _ => Err(NOT_UNDERSTOOD),
    }
}

/// A server that has only just been started may not listen yet.
fn connect(port: u16) -> io::Result<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let address = (Ipv4Addr::LOCALHOST, port).into();
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused
                    && Instant::now() < deadline =>
            {
                thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}
