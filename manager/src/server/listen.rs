//! Connections: TLS, then HTTP, both with bounds on all that a client has a say in.

use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info};

use super::seats::{Seat, Seats};
use super::tls::{Current, Peer, PeerError, peer_of};

/// Connections at a time.
const ALL: usize = 128;
/// Of them from one address. Most come from the few API servers.
const EACH: usize = 48;
/// A handshake takes milliseconds.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// From the first byte of a request's head to its last, and from one request to the next.
const HEAD: Duration = Duration::from_secs(30);
/// After it a connection takes no further request.
const LIFE: Duration = Duration::from_secs(300);
/// What is under way then has this long: more than a request for sleep may take.
const REST: Duration = Duration::from_secs(330);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 * 1024;
/// Lines of it. An API server adds some to those of its client.
const HEAD_LINES: usize = 64;
/// Pause where the system has no descriptor or memory left for a connection: there is no event for that.
const BREATH: Duration = Duration::from_millis(100);

/// Who is at the other end, if he has shown a certificate of the cluster's authority.
#[derive(Clone, Debug)]
pub struct Shown(pub Result<Option<Peer>, PeerError>);

/// Serves `router` on `listener`, for ever. Nobody is accepted before there is a certificate.
pub async fn serve(listener: TcpListener, mut current: Current, router: Router) {
    if current.wait_for(Option::is_some).await.is_err() {
        // Its task never ends by itself while this end is there.
        return;
    }
    info!("the node server accepts connections");
    let seats = Seats::new(ALL, EACH);
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!("accept a connection: {error}");
                if !is_clients(&error) {
                    tokio::time::sleep(BREATH).await;
                }
                continue;
            }
        };
        let Some(seat) = seats.take(address.ip()) else {
            debug!("too many connections, not one more from {address}");
            continue;
        };
        let config = current.borrow().clone();
        if let Some(config) = config {
            let router = router.clone();
            drop(tokio::spawn(async move {
                let error = connection(stream, seat, address.ip(), config, router).await;
                if let Err(error) = error {
                    debug!("connection from {address}: {error}");
                }
            }));
        }
    }
}

/// Whether it is the client who was at fault, and not the system.
fn is_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

/// Why a connection came to its end.
#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("handshake: {0}")]
    Handshake(io::Error),
    #[error("no handshake in {HANDSHAKE:?}")]
    Slow,
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    #[error("open for too long")]
    Long,
}

async fn connection(
    stream: TcpStream,
    _seat: Seat,
    address: IpAddr,
    config: Arc<ServerConfig>,
    router: Router,
) -> Result<(), ConnectionError> {
    // Answers are small and awaited. That a socket cannot do it is no reason not to answer.
    let _ = stream.set_nodelay(true);
    let accepting = TlsAcceptor::from(config).accept(stream);
    let stream = match timeout(HANDSHAKE, accepting).await {
        Ok(accepted) => accepted.map_err(ConnectionError::Handshake)?,
        Err(_) => return Err(ConnectionError::Slow),
    };
    let shown = Shown(peer_of(stream.get_ref().1.peer_certificates()));
    let router = router.layer(Extension(shown)).layer(Extension(address));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(HEAD_LINES)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut serving = pin!(serving);
    match timeout(LIFE, serving.as_mut()).await {
        Ok(served) => return Ok(served?),
        Err(_) => serving.as_mut().graceful_shutdown(),
    }
    match timeout(REST, serving).await {
        Ok(served) => Ok(served?),
        Err(_) => Err(ConnectionError::Long),
    }
}
