//! Asks managers, through the API server's proxy of their pods.

use std::time::Duration;

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::cluster::{Cluster, Manager};
use crate::token::Token;

/// The header that they expect the token in.
const TOKEN: &str = "x-podmotion-token";
/// How many shims of a node have not answered.
const SILENT: &str = "x-podmotion-silent-shims";
/// More than a node with its hundreds of containers has to say.
const LARGEST: usize = 32 << 20;

/// What came back from a node.
#[derive(Debug)]
pub struct Answer<T> {
    /// The answer.
    pub content: T,
    /// How many of its shims have not answered.
    pub silent: usize,
}

/// Why nothing came back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nobody there, or not in time.
    #[error("node {node}: its manager does not answer: {cause}")]
    NoAnswer {
        /// The node.
        node: String,
        /// Why.
        cause: String,
    },
    /// The API server lets nobody through, or the manager does not do it.
    #[error("node {node}: {words}")]
    Refused {
        /// The node.
        node: String,
        /// Their words.
        words: String,
    },
    /// The manager knows no such thing.
    #[error("node {node}: {words}")]
    NotFound {
        /// The node.
        node: String,
        /// Its words.
        words: String,
    },
    /// Not what a manager of this version says.
    #[error("node {node}: its manager's answer is not understood: {cause}")]
    Unreadable {
        /// The node.
        node: String,
        /// Why.
        cause: String,
    },
}

/// What the API server says itself.
#[derive(Deserialize)]
struct Status {
    kind: String,
    #[serde(default)]
    message: String,
}

/// Sends a request without content to `path` of a manager and waits no longer than `within`.
///
/// # Errors
/// When nothing comes back that can be used.
pub async fn ask<T: DeserializeOwned>(
    cluster: &Cluster,
    manager: &Manager,
    token: &Token,
    (method, path): (Method, &str),
    within: Duration,
) -> Result<Answer<T>, AskError> {
    let node = manager.node.clone();
    let silence = |cause: String| AskError::NoAnswer {
        node: node.clone(),
        cause,
    };
    let address = format!(
        "/api/v1/namespaces/{}/pods/https:{}:{}/proxy{path}",
        cluster.podmotion, manager.pod, manager.port
    );
    let request = Request::builder()
        .method(method)
        .uri(address)
        .header(TOKEN, token.as_str())
        .body(Body::empty())
        .map_err(|error| silence(error.to_string()))?;
    let exchange = async {
        let response = cluster.client.send(request).await;
        let response = response.map_err(crate::cluster::words)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, LARGEST).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        Ok((head, body))
    };
    let (head, body) = match timeout(within, exchange).await {
        Ok(exchanged) => exchanged.map_err(silence)?,
        Err(_) => return Err(silence(format!("nothing came in {within:?}"))),
    };
    if head.status != StatusCode::OK {
        return Err(failure(node, head.status, &body));
    }
    let content = serde_json::from_slice(&body).map_err(|error| AskError::Unreadable {
        node,
        cause: error.to_string(),
    })?;
    let silent = head
        .headers
        .get(SILENT)
        .and_then(|count| count.to_str().ok());
    Ok(Answer {
        content,
        silent: silent.and_then(|count| count.parse().ok()).unwrap_or(0),
    })
}

/// Whose answer it is shows in its form: an API server's is an object, a manager's is a line.
fn failure(node: String, status: StatusCode, body: &[u8]) -> AskError {
    let of_api = serde_json::from_slice::<Status>(body);
    match of_api.ok().filter(|object| object.kind == "Status") {
        Some(object) if status == StatusCode::FORBIDDEN || status == StatusCode::UNAUTHORIZED => {
            let words = object.message;
            AskError::Refused { node, words }
        }
        Some(object) => AskError::NoAnswer {
            node,
            cause: object.message,
        },
        None => {
            let words = String::from_utf8_lossy(body).trim().to_owned();
            match status {
                _ if words.is_empty() => AskError::NoAnswer {
                    node,
                    cause: status.to_string(),
                },
                StatusCode::NOT_FOUND => AskError::NotFound { node, words },
                _ => AskError::Refused { node, words },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_servers_answer_is_told_from_a_managers() {
        let of_api = |message: &str| {
            let status = serde_json::json!({"kind": "Status", "message": message});
            status.to_string().into_bytes()
        };
        let failure = |status, body: &[u8]| failure("n1".to_owned(), status, body);
        let node = "n1".to_owned();
        assert_eq!(
            failure(StatusCode::FORBIDDEN, &of_api("no pods/proxy")),
            AskError::Refused {
                node: node.clone(),
                words: "no pods/proxy".into()
            }
        );
        assert_eq!(
            failure(StatusCode::SERVICE_UNAVAILABLE, &of_api("refused")),
            AskError::NoAnswer {
                node: node.clone(),
                cause: "refused".into()
            }
        );
        assert_eq!(
            failure(StatusCode::FORBIDDEN, b"jane may not\n"),
            AskError::Refused {
                node: node.clone(),
                words: "jane may not".into()
            }
        );
        assert_eq!(
            failure(StatusCode::NOT_FOUND, b"no container\n"),
            AskError::NotFound {
                node: node.clone(),
                words: "no container".into()
            }
        );
        assert_eq!(
            failure(StatusCode::BAD_GATEWAY, b""),
            AskError::NoAnswer {
                node,
                cause: "502 Bad Gateway".into()
            }
        );
    }
}
