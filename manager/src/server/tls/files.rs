//! Certificates of a folder, as cert-manager and others mount them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::sync::watch;
use tracing::{info, warn};

use super::identity::{Identity, Parts, TlsError};

/// A kubelet renews mounted Secrets once a minute itself.
const AGAIN: Duration = Duration::from_secs(60);

/// What is in a folder.
#[derive(Debug)]
pub struct FromFolder {
    parts: Parts,
    identity: Identity,
}

impl FromFolder {
    /// What connections are accepted with.
    ///
    /// # Errors
    /// When the key does not fit, or nothing can be trusted.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        self.identity.server_config()
    }
}

/// Reads `ca.crt`, `tls.crt` and `tls.key`.
///
/// # Errors
/// When one of them is missing or wrong.
pub fn read(folder: &Path) -> Result<FromFolder, TlsError> {
    let file = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).map_err(|source| TlsError::Read { path, source })
    };
    let parts = Parts {
        trusted: file("ca.crt")?,
        certificate: file("tls.crt")?,
        key: file("tls.key")?,
    };
    let identity = Identity::read(&folder.display().to_string(), &parts)?;
    Ok(FromFolder { parts, identity })
}

/// Takes over what changes in the folder. What is wrong there leaves the former in use.
pub async fn keep(
    folder: PathBuf,
    mut current: FromFolder,
    tell: watch::Sender<Option<Arc<ServerConfig>>>,
) {
    loop {
        tokio::select! {
            () = tell.closed() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
        let changed = read(&folder).and_then(|read| {
            if read.parts == current.parts {
                return Ok(None);
            }
            let config = read.server_config()?;
            Ok(Some((read, config)))
        });
        match changed {
            Ok(None) => {}
            Ok(Some((read, config))) => {
                current = read;
                tell.send_replace(Some(Arc::new(config)));
                info!("new certificate in {}", folder.display());
            }
            Err(error) => warn!("the former certificate stays in use: {error}"),
        }
    }
}
