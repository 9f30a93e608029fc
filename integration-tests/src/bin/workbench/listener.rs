//! Waiting for a server to listen.

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podmotion_integration_tests::PATIENCE;

/// Returns once something listens. That makes no event for its clients: it is asked until it does.
pub fn wait(address: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(address) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("connect to {address}"));
            }
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}
