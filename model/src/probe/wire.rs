//! What the shim and `podmotion-responder` say to each other, each message a packet of its own.
//!
//! ```text
//!   responder: a request   --> shim: Reply::Known    the responder answers
//!                                    Reply::Proxy    with a connection to the application
//!                                    Reply::Refused  the client's connection is reset
//!   responder: its outcome -->                       after Reply::Proxy
//! ```

use super::Request;

/// The request that the responder is started for: its only argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// HTTP/1 over TLS.
    Tls,
    /// HTTP/2 in clear text, for health checks over gRPC.
    Grpc,
}

impl Task {
    /// The argument.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Grpc => "grpc",
        }
    }

    /// The one with this argument.
    pub fn parse(argument: &str) -> Option<Self> {
        [Self::Tls, Self::Grpc]
            .into_iter()
            .find(|task| task.as_str() == argument)
    }
}

/// From the responder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// What the client asks.
    Asked(Request),
    /// What the application has said to it.
    Outcome {
        /// The probe has passed.
        passed: bool,
        /// For people.
        said: String,
    },
}

/// From the shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The application would let it pass.
    Known,
    /// The application is to answer; a connection to it comes with this.
    Proxy,
    /// Nobody can answer.
    Refused,
}

/// Bytes of a message at most.
pub const MAX_MESSAGE: usize = super::MAX_HEAD + 1;

impl Message {
    /// As a packet. Longer requests than [`MAX_MESSAGE`] allows are those that are not remembered.
    pub fn encode(&self) -> Vec<u8> {
        let (tag, rest) = match self {
            Self::Asked(Request::Http { head, .. }) if head.len() < MAX_MESSAGE => {
                (b'h', &head[..])
            }
            Self::Asked(Request::Grpc { message }) if message.len() < MAX_MESSAGE => {
                (b'g', &message[..])
            }
            Self::Asked(Request::Hook) => (b'l', &[][..]),
            Self::Asked(_) => (b'o', &[][..]),
            Self::Outcome { passed: true, said } => (b'p', said.as_bytes()),
            Self::Outcome {
                passed: false,
                said,
            } => (b'f', said.as_bytes()),
        };
        let rest = &rest[..rest.len().min(MAX_MESSAGE - 1)];
        [&[tag], rest].concat()
    }

    /// From a packet; `None` if it is none of these.
    pub fn decode(packet: &[u8]) -> Option<Self> {
        let (tag, rest) = packet.split_first()?;
        let said = || String::from_utf8_lossy(rest).into_owned();
        Some(match tag {
            b'h' => Self::Asked(Request::Http {
                head: rest.into(),
                tls: true,
            }),
            b'g' => Self::Asked(Request::Grpc {
                message: rest.into(),
            }),
            b'l' => Self::Asked(Request::Hook),
            b'o' => Self::Asked(Request::Other),
            b'p' => Self::Outcome {
                passed: true,
                said: said(),
            },
            b'f' => Self::Outcome {
                passed: false,
                said: said(),
            },
            _ => return None,
        })
    }
}

impl Reply {
    /// As a packet.
    pub fn encode(self) -> u8 {
        match self {
            Self::Known => b'k',
            Self::Proxy => b'p',
            Self::Refused => b'r',
        }
    }

    /// From a packet; `None` if it is none of these.
    pub fn decode(packet: u8) -> Option<Self> {
        [Self::Known, Self::Proxy, Self::Refused]
            .into_iter()
            .find(|reply| reply.encode() == packet)
    }
}
