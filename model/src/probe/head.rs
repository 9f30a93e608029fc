//! The heads of HTTP/1 messages, as far as a probe needs them.
//!
//! Nothing is changed or completed: what is proxied are the bytes as they came. A head that is not as
//! RFC 9112 wants it is never taken for a probe that could be answered.

/// Bytes of a request's head at most, the empty line included.
pub const MAX_HEAD: usize = 16 << 10;

/// What the kubelet's HTTP probes call themselves, unless the pod gives them another name.
const PROBE: &[u8] = b"kube-probe/";
/// What its hooks call themselves.
const HOOK: &[u8] = b"kube-lifecycle/";

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
    /// What it is.
    pub kind: HeadKind,
}

/// What a request of the kubelet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// A probe without a body.
    Probe,
    /// A hook.
    Hook,
    /// Something else, such as a probe that the pod has given another user agent.
    Other,
}

impl RequestHead<'_> {
    /// As what is asked.
    pub fn request(&self, tls: bool) -> Request {
        match self.kind {
            HeadKind::Probe => Request::Http {
                head: self.bytes.into(),
                tls,
            },
            HeadKind::Hook => Request::Hook,
            HeadKind::Other => Request::Other,
        }
    }
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
        match kind(&bytes[..end]) {
            Some(kind) => Self::Request(RequestHead { bytes: head, kind }),
            None => Self::Other,
        }
    }

    /// What is asked by a client that has sent this; over TLS, or not.
    pub fn request(&self, tls: bool) -> Request {
        match self {
            Self::Request(head) => head.request(tls),
            Self::Partial | Self::Other => Request::Other,
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

/// What a head is, without its empty line; `None` if it is no request's.
fn kind(head: &[u8]) -> Option<HeadKind> {
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
    let mut agent = HeadKind::Other;
    let mut body = false;
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return None;
        }
        if name.eq_ignore_ascii_case(b"user-agent") {
            agent = match value {
                value if value.starts_with(PROBE) => HeadKind::Probe,
                value if value.starts_with(HOOK) => HeadKind::Hook,
                _ => HeadKind::Other,
            };
        }
        body |= name.eq_ignore_ascii_case(b"content-length") && value != b"0"
            || name.eq_ignore_ascii_case(b"transfer-encoding")
            || name.eq_ignore_ascii_case(b"upgrade");
    }
    Some(match agent {
        HeadKind::Probe if body => HeadKind::Other,
        agent => agent,
    })
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
    /// A hook of the pod's: the application itself is meant, and its answer is none about its health.
    Hook,
    /// Anything else: no two of them are known to be the same.
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
            Self::Hook => "hook",
            Self::Other => "other",
        }
    }

    /// What it asks for, for people.
    pub fn subject(&self) -> String {
        let text = match self {
            Self::Http { head, .. } => head.split(|byte| *byte == b'\r').next(),
            Self::Grpc { message } => message.get(2..),
            Self::Tcp | Self::Hook | Self::Other => None,
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
