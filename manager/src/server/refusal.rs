//! What a client hears that gets nothing: a status and one line.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use podmotion_proto::client::FolderError;
use tracing::warn;

use super::access::ReviewError;
use super::api::TOKEN;
use super::tls::PeerError;

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Neither a certificate nor a token.
    #[error("no token: expected one of a service account in the header {TOKEN}")]
    NoToken,
    /// The token, or what its user may do.
    #[error(transparent)]
    Review(#[from] ReviewError),
    /// A certificate of the cluster's authority, but not a manager's.
    #[error(transparent)]
    Certificate(#[from] PeerError),
    /// Only for managers.
    #[error("only for managers, with a certificate of the cluster's authority")]
    ManagersOnly,
    /// A name that no object of Kubernetes has.
    #[error("{value:?} is no {what}: expected small letters, digits, '-' and '.'")]
    Name {
        /// What it should be.
        what: &'static str,
        /// What it is.
        value: String,
    },
    /// Not a time to wait.
    #[error("timeout {value}: expected 1 to {most} seconds")]
    Timeout {
        /// What was asked for.
        value: u64,
        /// What is accepted.
        most: u64,
    },
    /// There is no such container.
    #[error("{0}")]
    NoSuchContainer(String),
    /// There is no such page.
    #[error("nothing is served here")]
    NotFound,
    /// The page cannot do that.
    #[error("this is not done with such a request")]
    Method,
    /// Requests have no content.
    #[error("requests have no content here")]
    Content,
    /// The node is at fault.
    #[error(transparent)]
    Shims(#[from] FolderError),
    /// The node is at fault.
    #[error("{0}")]
    Node(String),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        use ReviewError::{Failed, Forbidden, Malformed, NoKubernetes, NotAuthenticated};
        match self {
            Self::NoToken | Self::Review(Malformed(_) | NotAuthenticated(_)) => {
                StatusCode::UNAUTHORIZED
            }
            Self::Review(Forbidden { .. }) | Self::Certificate(_) | Self::ManagersOnly => {
                StatusCode::FORBIDDEN
            }
            Self::Review(NoKubernetes | Failed { .. }) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Name { .. } | Self::Timeout { .. } => StatusCode::BAD_REQUEST,
            Self::NoSuchContainer(_) | Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Content => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Shims(_) | Self::Node(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status();
        // A line is a line, whatever was asked for.
        let line = self.to_string().replace(['\n', '\r'], " ");
        if status.is_server_error() {
            warn!("the node server refuses: {line}");
        }
        let mut response = (status, line + "\n").into_response();
        if matches!(self, Self::Content) {
            // What is sent all the same is not read.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }
}
