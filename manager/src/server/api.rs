//! What can be asked of a node.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/containers[?namespace=NAMESPACE]` | the containers of pods, as `podmotion ps --output json` |
//! | `GET /v1/containers/NAMESPACE/POD[/CONTAINER]` | those of a pod |
//! | `POST .../sleep`, `POST .../wake`, `[?timeout=SECONDS]` | what became of it, as `podmotion sleep --output json` |
//! | `GET /v1/check` | the last self-test, and whether all shims answer |
//! | `GET /v1/peer` | name and version, for managers |

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde::Serialize;

use super::access::{Access, Reviewer, User};
use super::listen::Shown;
use super::refusal::Refusal;
use super::{check, containers};

/// The header with a token. Not `Authorization`, which an API server keeps to itself.
pub const TOKEN: &str = "x-podmotion-token";

/// What all requests are answered from.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where the shims' sockets are.
    pub shims: PathBuf,
    /// Where the last self-test is written down.
    pub self_test: PathBuf,
    /// Knows who may do what.
    pub reviewer: Reviewer,
}

/// All of it.
pub fn router(node: Node) -> Router {
    let containers = "/v1/containers/{namespace}/{pod}";
    Router::new()
        .route("/v1/containers", get(containers::list))
        .route(containers, get(containers::pod))
        .route(
            // The last part of a GET is a container's name, which may be `sleep`.
            &format!("{containers}/{{last}}"),
            get(containers::container).post(containers::ask_pod),
        )
        .route(
            &format!("{containers}/{{container}}/{{verb}}"),
            axum::routing::post(containers::ask_container),
        )
        .route("/v1/check", get(check::check))
        .route("/v1/peer", get(peer))
        .fallback(async || Refusal::NotFound)
        .method_not_allowed_fallback(async || Refusal::Method)
        .layer(middleware::from_fn(no_content))
        .with_state(Arc::new(node))
}

/// Refuses requests with content before a byte of it is read, and has nobody on the way keep answers.
async fn no_content(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let length = headers.get(header::CONTENT_LENGTH);
    let empty = length.is_none_or(|length| length == "0");
    if !empty || headers.contains_key(header::TRANSFER_ENCODING) {
        return Refusal::Content.into_response();
    }
    let mut response = next.run(request).await;
    let no_store = HeaderValue::from_static("no-store");
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, no_store);
    response
}

/// Who asks, by his token.
pub struct Caller {
    node: Arc<Node>,
    user: User,
}

impl Caller {
    /// Who he is, if he may do it.
    ///
    /// # Errors
    /// When he may not.
    pub async fn may(self, access: Access) -> Result<User, Refusal> {
        self.node.reviewer.permit(&self.user, access).await?;
        Ok(self.user)
    }
}

impl FromRequestParts<Arc<Node>> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, Refusal> {
        let token = parts.headers.get(TOKEN).ok_or(Refusal::NoToken)?;
        // What is not text is no token, which the review says.
        let user = node
            .reviewer
            .user(token.to_str().unwrap_or("\u{fffd}"))
            .await?;
        let node = Arc::clone(node);
        Ok(Self { node, user })
    }
}

/// The manager of a node, to other managers.
#[derive(Serialize)]
struct Manager<'a> {
    node: &'a str,
    version: &'static str,
}

async fn peer(
    State(node): State<Arc<Node>>,
    Extension(Shown(shown)): Extension<Shown>,
) -> Result<Response, Refusal> {
    shown?.ok_or(Refusal::ManagersOnly)?;
    let manager = Manager {
        node: &node.name,
        version: env!("CARGO_PKG_VERSION"),
    };
    Ok(Json(manager).into_response())
}
