//! The authority as the cluster keeps it: the Secret `podmotion-ca`.
//!
//! The first manager makes it; that it is one only is the API server's doing, which refuses to create a second
//! object of a name and to replace what somebody else has replaced in between. Whoever wants a new authority
//! deletes the Secret. Nothing is made where there is a Secret that cannot be used: that is its owner's to
//! mend, and the certificate in use goes on until it ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, Client};
use rustls::ServerConfig;
use time::OffsetDateTime;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::ca::{self, Ca};
use super::identity::{Identity, Parts, TlsError};

/// The Secret's name.
const NAME: &str = "podmotion-ca";
/// Its keys, which are those of a Secret of this kind.
const KIND: &str = "kubernetes.io/tls";
const TRUSTED: &str = "ca.crt";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// After this time what went wrong is tried again; the Secret's changes are heard of at once.
const AGAIN: Duration = Duration::from_secs(10);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
enum AuthorityError {
    #[error("{operation} Secret {NAME}: {source}")]
    Kubernetes {
        operation: &'static str,
        #[source]
        source: kube::Error,
    },
    #[error("Secret {NAME} has no {key}")]
    Missing { key: &'static str },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Which version of the Secret something was made of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Version(Option<String>);

/// Keeps the server's certificate current, until nobody needs it any more.
pub async fn keep(
    client: Client,
    namespace: String,
    node: String,
    tell: watch::Sender<Option<Arc<ServerConfig>>>,
) {
    let secrets: Api<Secret> = Api::namespaced(client, &namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut changes = Box::pin(watch_objects(secrets.clone(), only).default_backoff());
    loop {
        let (seen, again) = match renew(&secrets, &node).await {
            Ok((version, config)) => {
                tell.send_replace(Some(Arc::new(config)));
                debug!("the node server has a new certificate");
                let half = Duration::from_secs(ca::OWN.whole_seconds().unsigned_abs() / 2);
                (version, half)
            }
            Err(error) => {
                warn!("the node server has no new certificate: {error}");
                (Version::default(), AGAIN)
            }
        };
        tokio::select! {
            () = tell.closed() => return,
            () = tokio::time::sleep(again) => {}
            () = changed(&mut changes, &seen), if seen.0.is_some() => {}
        }
    }
}

/// A certificate of the authority that there is now.
async fn renew(
    secrets: &Api<Secret>,
    node: &str,
) -> Result<(Version, ServerConfig), AuthorityError> {
    let (version, ca) = authority(secrets).await?;
    let parts = ca.issue(node, OffsetDateTime::now_utc())?;
    let what = "this manager";
    Ok((version, Identity::read(what, &parts)?.server_config()?))
}

/// The authority, which is made where there is none and replaced where it is about to end.
async fn authority(secrets: &Api<Secret>) -> Result<(Version, Ca), AuthorityError> {
    let failed = |operation| move |source| AuthorityError::Kubernetes { operation, source };
    loop {
        let now = OffsetDateTime::now_utc();
        let found = secrets.get_opt(NAME).await.map_err(failed("get"))?;
        let former = found.as_ref().map(read).transpose()?;
        let made = match (&found, former) {
            (Some(secret), Some(ca)) if !ca.is_due(now) => return Ok((version(secret), ca)),
            (Some(secret), Some(ca)) => {
                let new = secret_of(Ca::make(Some(&ca), now)?, secret.metadata.clone());
                let params = PostParams::default();
                (secrets.replace(NAME, &params, &new).await, "replace")
            }
            _ => {
                let metadata = ObjectMeta {
                    name: Some(NAME.to_owned()),
                    labels: Some(BTreeMap::from([(
                        "app.kubernetes.io/part-of".to_owned(),
                        "podmotion".to_owned(),
                    )])),
                    ..ObjectMeta::default()
                };
                let new = secret_of(Ca::make(None, now)?, metadata);
                (secrets.create(&PostParams::default(), &new).await, "create")
            }
        };
        match made {
            (Ok(_), operation) => info!("{operation} Secret {NAME}: a new authority"),
            // Another manager was faster.
            (Err(kube::Error::Api(status)), _) if status.code == 409 => {}
            // Somebody has deleted it meanwhile. To create, what is missing is the namespace.
            (Err(kube::Error::Api(status)), "replace") if status.code == 404 => {}
            (Err(source), operation) => return Err(failed(operation)(source)),
        }
    }
}

fn version(secret: &Secret) -> Version {
    Version(secret.metadata.resource_version.clone())
}

fn read(secret: &Secret) -> Result<Ca, AuthorityError> {
    let part = |key: &'static str| {
        let data = secret.data.as_ref().and_then(|data| data.get(key));
        let data = data.map(|part| part.0.clone());
        data.ok_or(AuthorityError::Missing { key })
    };
    let parts = Parts {
        trusted: part(TRUSTED)?,
        certificate: part(CERTIFICATE)?,
        key: part(KEY)?,
    };
    Ok(Ca::read(&format!("Secret {NAME}"), parts)?)
}

fn secret_of(parts: Parts, metadata: ObjectMeta) -> Secret {
    let data = [
        (TRUSTED, parts.trusted),
        (CERTIFICATE, parts.certificate),
        (KEY, parts.key),
    ];
    Secret {
        metadata,
        type_: Some(KIND.to_owned()),
        data: Some(
            data.into_iter()
                .map(|(key, part)| (key.to_owned(), ByteString(part)))
                .collect(),
        ),
        ..Secret::default()
    }
}

/// Returns once the Secret is another than the one that was seen.
async fn changed(
    changes: &mut (impl Stream<Item = watcher::Result<Event<Secret>>> + Unpin),
    seen: &Version,
) {
    let mut there = false;
    while let Some(change) = changes.next().await {
        match change {
            Ok(Event::Apply(secret) | Event::InitApply(secret)) => {
                there = true;
                if version(&secret) != *seen {
                    return;
                }
            }
            Ok(Event::Delete(_)) => return,
            Ok(Event::Init) => there = false,
            Ok(Event::InitDone) if !there => return,
            Ok(Event::InitDone) => {}
            // The stream goes on by itself, later each time.
            Err(error) => debug!("watch Secret {NAME}: {error}"),
        }
    }
}
