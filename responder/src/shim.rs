//! The shim, asked.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt::Linger};
use podmotion_model::probe::Request;
use podmotion_model::probe::wire::{Message, Reply};
use tokio::net::TcpStream;

use crate::sys;

/// The way to the shim. What it says is waited for without doing anything else: there is nothing else.
pub struct Shim {
    socket: OwnedFd,
}

/// Who answers.
pub enum Answer {
    /// The application would let the probe pass.
    Known,
    /// The application, over this connection.
    Application(TcpStream),
    /// Nobody.
    Nobody,
}

impl Shim {
    /// Over its socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Who answers `request`. Takes as long as it takes to wake the container.
    ///
    /// # Errors
    /// When the shim is gone.
    pub fn ask(&self, request: Request) -> Result<Answer> {
        self.tell(&Message::Asked(request))?;
        let (byte, connection) = sys::receive(&self.socket).context("hear from the shim")?;
        let reply = byte.and_then(Reply::decode);
        match (reply.context("the shim has not answered")?, connection) {
            (Reply::Known, _) => Ok(Answer::Known),
            (Reply::Refused, _) => Ok(Answer::Nobody),
            (Reply::Proxy, Some(connection)) => {
                let connection = std::net::TcpStream::from(connection);
                connection.set_nonblocking(true)?;
                Ok(Answer::Application(TcpStream::from_std(connection)?))
            }
            (Reply::Proxy, None) => bail!("the shim has sent no connection"),
        }
    }

    /// Says what the application has answered.
    ///
    /// # Errors
    /// When the shim is gone.
    pub fn outcome(&self, passed: bool, said: impl Into<String>) -> Result<()> {
        let said = said.into();
        self.tell(&Message::Outcome { passed, said })
    }

    fn tell(&self, message: &Message) -> Result<()> {
        let packet = message.encode();
        send(self.socket.as_raw_fd(), &packet, MsgFlags::MSG_NOSIGNAL).context("tell the shim")?;
        Ok(())
    }
}

/// Has a connection end with a reset when it is dropped, as one that nobody listens for.
///
/// # Errors
/// The system call's.
pub fn reset_at_end(connection: &TcpStream) -> Result<()> {
    let at_once = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(connection, Linger, &at_once).context("have the connection reset")
}
