//! The node server, on 8090: what a cluster asks of a node, and what managers ask of one another.
//!
//! Two doors, both TLS 1.3:
//!
//! ```text
//!   kubectl podmotion ──> API server ── pods/proxy, X-Podmotion-Token ──> token review, access review ──> shims
//!   another manager ── client certificate of the cluster's authority ──────────────────────> /v1/peer
//! ```
//!
//! Whoever comes through neither gets 401 or 403 and one line that says why; a certificate of somebody
//! else's authority gets no handshake. Each request for containers is reviewed with the API server, in the
//! namespace and with the name of its pod ([`access`]).

mod access;
mod api;
mod check;
mod containers;
mod listen;
mod refusal;
mod seats;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use kube::Client;
use tokio::net::TcpListener;

use self::access::Reviewer;
use self::tls::{Source, TlsError};

/// Options of the node server.
#[derive(Debug, clap::Args)]
#[group(id = "node-server")]
pub struct Args {
    /// Where the node server listens
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "PODMOTION_NODE_SERVER_ADDRESS",
        default_value = "0.0.0.0:8090"
    )]
    pub node_server_address: SocketAddr,
    /// A folder with ca.crt, tls.crt and tls.key, in place of the authority that managers share
    #[arg(long, value_name = "DIR", env = "PODMOTION_TLS_DIR")]
    pub tls_dir: Option<PathBuf>,
    /// The managers' namespace, in which they keep their authority
    #[arg(
        long,
        value_name = "NAMESPACE",
        env = "PODMOTION_NAMESPACE",
        default_value = "komodor-podmotion-system"
    )]
    pub namespace: String,
}

impl Args {
    /// Whether there can be a node server: without Kubernetes only where there are certificates in files.
    pub fn is_possible(&self, kubernetes: bool) -> bool {
        kubernetes || self.tls_dir.is_some()
    }
}

/// What the server is to know of its node.
pub struct Settings {
    /// The node's name.
    pub node: String,
    /// Where the shims' sockets are.
    pub shims: PathBuf,
    /// Where the last self-test is written down.
    pub self_test: PathBuf,
    /// Talks to the API server, if there is one.
    pub client: Option<Client>,
}

/// Why there is no node server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The files are not to be used.
    #[error("--tls-dir: {0}")]
    Tls(#[from] TlsError),
    /// There is nothing to get a certificate from.
    #[error("the node server needs a certificate: without Kubernetes, of --tls-dir")]
    NoCertificate,
}

/// Serves, for ever.
///
/// # Errors
/// When it cannot begin.
pub async fn run(args: Args, settings: Settings) -> Result<(), ServerError> {
    let source = match (args.tls_dir, &settings.client) {
        (Some(folder), _) => Source::Folder(folder),
        (None, Some(client)) => Source::Cluster {
            client: client.clone(),
            namespace: args.namespace,
            node: settings.node.clone(),
        },
        (None, None) => return Err(ServerError::NoCertificate),
    };
    let address = args.node_server_address;
    let listen = TcpListener::bind(address).await;
    let listener = listen.map_err(|source| ServerError::Listen { address, source })?;
    let router = api::router(api::Node {
        name: settings.node,
        shims: settings.shims,
        self_test: settings.self_test,
        reviewer: Reviewer::new(settings.client),
    });
    listen::serve(listener, source.keep()?, router).await;
    Ok(())
}
