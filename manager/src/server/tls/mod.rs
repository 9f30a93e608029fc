//! The server's certificate, and whose certificates it takes.
//!
//! ```text
//!   Secret podmotion-ca ──watch──> authority ── signs ──> own certificate, an hour ──┐
//!   --tls-dir: ca.crt, tls.crt, tls.key ────── read again each minute ───────────────┤
//!                                                                                    v
//!                                                      TLS 1.3, one configuration for each new connection
//! ```
//!
//! A client may show a certificate; if it does, it must be of the cluster's authority, or there is no
//! handshake. Sessions are not resumed: a certificate that has expired is looked at again.

mod authority;
mod ca;
mod files;
mod identity;
mod peer;

use std::path::PathBuf;
use std::sync::Arc;

use kube::Client;
use rustls::ServerConfig;
use tokio::sync::watch;

pub use self::identity::TlsError;
pub use self::peer::{Peer, PeerError, of_certificates as peer_of};

/// What new connections are accepted with; nothing until there is a certificate.
pub type Current = watch::Receiver<Option<Arc<ServerConfig>>>;

/// Where the server's certificate comes from.
pub enum Source {
    /// Signed by this manager, with the cluster's authority.
    Cluster {
        /// Talks to the API server.
        client: Client,
        /// The namespace of the authority's Secret.
        namespace: String,
        /// The node's name.
        node: String,
    },
    /// Files of this folder.
    Folder(PathBuf),
}

impl Source {
    /// Keeps the configuration current, in a task of its own, until nobody has the result any more.
    ///
    /// # Errors
    /// When files were given and are not to be used.
    pub fn keep(self) -> Result<Current, TlsError> {
        let (tell, current) = watch::channel(None);
        match self {
            Self::Cluster {
                client,
                namespace,
                node,
            } => drop(tokio::spawn(authority::keep(client, namespace, node, tell))),
            Self::Folder(folder) => {
                let identity = files::read(&folder)?;
                tell.send_replace(Some(Arc::new(identity.server_config()?)));
                drop(tokio::spawn(files::keep(folder, identity, tell)));
            }
        }
        Ok(current)
    }
}
