//! A way to a server that can be cut, as a network fails.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};

/// Passes connections on to a server, until it is cut. Dropping it cuts it for good.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    cut: bool,
    ended: bool,
    /// Both ends of each connection.
    streams: Vec<TcpStream>,
}

impl Relay {
    /// Starts to pass on to `server`.
    pub fn start(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen")?;
        let relay = Self {
            address: listener.local_addr().context("the relay's address")?,
            state: Arc::default(),
        };
        let state = Arc::clone(&relay.state);
        thread::spawn(move || {
            for client in listener.incoming() {
                let mut state = lock(&state);
                if state.ended {
                    return;
                }
                // A connection that cannot be passed on is closed.
                if !state.cut {
                    drop(client.and_then(|client| state.pass_on(client, server)));
                }
            }
        });
        Ok(relay)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nobody reaches the server; connections that there are end.
    pub fn cut(&self) {
        let mut state = lock(&self.state);
        state.cut = true;
        for stream in state.streams.drain(..) {
            // One that has ended is not there to be ended.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The server can be reached again.
    pub fn mend(&self) {
        lock(&self.state).cut = false;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
        lock(&self.state).ended = true;
        // It waits for a connection, and sees then that this is the end.
        drop(TcpStream::connect(self.address));
    }
}

impl State {
    fn pass_on(&mut self, client: TcpStream, server: SocketAddr) -> io::Result<()> {
        let server = TcpStream::connect(server)?;
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
            thread::spawn(move || {
                // Whichever end has ended, so does the other one's.
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
        self.streams.extend([client, server]);
        Ok(())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
