//! `/metrics`, `/healthz` and `/readyz`, over plain HTTP.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::health::Cluster;
use crate::metrics::{CONTENT_TYPE, Metrics};

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address}: {source}")]
pub struct ListenError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// Listens.
///
/// # Errors
/// When the system does not let it.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let failed = |source| ListenError { address, source };
    TcpListener::bind(address).await.map_err(failed)
}

/// Serves until `end`.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    metrics: Option<Metrics>,
    health: watch::Receiver<Cluster>,
    end: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let mut router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready).with_state(health));
    if let Some(metrics) = metrics {
        router = router.route("/metrics", get(scrape).with_state(metrics));
    }
    axum::serve(listener, router)
        .with_graceful_shutdown(end)
        .await
}

async fn ready(State(health): State<watch::Receiver<Cluster>>) -> Response {
    match health.borrow().unready() {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn scrape(State(metrics): State<Metrics>) -> Response {
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
