//! The heads of HTTP/1 messages, as far as a probe needs them.
//!
//! Nothing is changed or completed: what is proxied are the bytes as they came. A head that is not as
//! RFC 9112 wants it is never taken for a probe that could be answered.

/// Bytes of a request's head at most, the empty line included.
pub const MAX_HEAD: usize = 16 << 10;

/// What the kubelet's HTTP probes call themselves; its hooks are `kube-lifecycle/`.
const PROBE: &[u8] = b"kube-probe/";

/// What has come of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head<'a> {
    /// Not all of it yet.
    Partial,
    /// A request.
    Request(RequestHead<'a>),
    /// No HTTP/1 request, or one whose head is too long.
    Other,
}

/// The head of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHead<'a> {
    /// All of it, the empty line included.
    pub bytes: &'a [u8],
    /// It is a probe of the kubelet without a body.
    pub probe: bool,
}

impl<'a> Head<'a> {
    /// Reads the beginning of what a client has sent.
    pub fn read(bytes: &'a [u8]) -> Self {
        let seen = &bytes[..bytes.len().min(MAX_HEAD)];
        let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") else {
            return match bytes.len() < MAX_HEAD && may_become_request(bytes) {
                true => Self::Partial,
                false => Self::Other,
            };
        };
        let head = &bytes[..end + 4];
        match is_probe(&bytes[..end]) {
            Some(probe) => Self::Request(RequestHead { bytes: head, probe }),
            None => Self::Other,
        }
    }
}

/// Whether what has come so far can be the beginning of a request line: without that a client of
/// another protocol would be waited for.
fn may_become_request(bytes: &[u8]) -> bool {
    let method = bytes.iter().position(|byte| *byte == b' ');
    bytes[..method.unwrap_or(bytes.len())]
        .iter()
        .all(|byte| is_token(*byte))
        && method != Some(0)
}

/// Whether a head, without the empty line, is a probe's; `None` if it is no request's.
fn is_probe(head: &[u8]) -> Option<bool> {
    let mut lines = head
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut words = lines.next()?.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let good = !method.is_empty()
        && method.iter().all(|byte| is_token(*byte))
        && !target.is_empty()
        && matches!(version, b"HTTP/1.1" | b"HTTP/1.0")
        && words.next().is_none();
    if !good {
        return None;
    }
    let mut agent = false;
    let mut body = false;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return None;
        }
        agent |= name.eq_ignore_ascii_case(b"user-agent") && value.starts_with(PROBE);
        body |= name.eq_ignore_ascii_case(b"content-length") && value != b"0"
            || name.eq_ignore_ascii_case(b"transfer-encoding")
            || name.eq_ignore_ascii_case(b"upgrade");
    }
    Some(agent && !body)
}

/// `tchar` of RFC 9110.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The status of the response that begins like this; `None` as long as it has not come, or if it is
/// no HTTP/1 response.
pub fn response_status(bytes: &[u8]) -> Option<u16> {
    let rest = bytes
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| bytes.strip_prefix(b"HTTP/1.0 "))?;
    let digits = rest.get(..3)?;
    match rest.get(3)? {
        b' ' | b'\r' | b'\n' => std::str::from_utf8(digits).ok()?.parse().ok(),
        _ => None,
    }
}

/// What a connection of the kubelet asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Nothing: it is only opened.
    Tcp,
    /// A probe over HTTP/1, by its head.
    Http {
        /// All bytes of the head.
        head: Box<[u8]>,
        /// It came over TLS.
        tls: bool,
    },
    /// A health check over gRPC.
    Grpc {
        /// Its message, which names the service.
        message: Box<[u8]>,
    },
    /// Anything else: never remembered.
    Other,
}

impl Request {
    /// The name of its kind, for the status.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http { tls: false, .. } => "http",
            Self::Http { tls: true, .. } => "https",
            Self::Grpc { .. } => "grpc",
            Self::Other => "other",
        }
    }

    /// What it asks for, for people.
    pub fn subject(&self) -> String {
        let text = match self {
            Self::Http { head, .. } => head.split(|byte| *byte == b'\r').next(),
            Self::Grpc { message } => message.get(2..),
            Self::Tcp | Self::Other => None,
        };
        let words = String::from_utf8_lossy(text.unwrap_or_default());
        // The method and the target; the version says nothing.
        let words = words.strip_suffix(" HTTP/1.1").unwrap_or(&words);
        words
            .chars()
            .filter(|c| !c.is_control())
            .take(100)
            .collect()
    }
}
