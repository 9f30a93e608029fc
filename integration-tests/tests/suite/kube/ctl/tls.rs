//! The node server's handshake, and the authority behind it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use podmotion_integration_tests::{Cluster, PATIENCE};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

use super::stage::{NAMESPACE, Stage};

/// What all managers are called.
const ROLE: &str = "manager.podmotion.komodor.com";

/// Where the first one listens.
pub(super) const SERVER: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 1)),
    8090,
);

const SECRET: &str = "podmotion-ca";

/// A certificate with its key, both in PEM.
struct Pair {
    certificate: String,
    key: String,
}

/// An authority of the cluster, or of somebody else.
struct Authority(Pair);

impl Authority {
    /// The cluster's.
    fn of(cluster: &Cluster) -> Result<Self> {
        let part = |name: &str| {
            let template = format!("go-template={{{{index .data {name:?} | base64decode}}}}");
            cluster.kubectl().run(&[
                "get",
                "secret",
                SECRET,
                "--namespace",
                NAMESPACE,
                "--output",
                &template,
            ])
        };
        Ok(Self(Pair {
            certificate: part("tls.crt")?,
            key: part("tls.key")?,
        }))
    }

    /// Somebody else's, of this name.
    fn foreign(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        Ok(Self(Pair {
            certificate: params.self_signed(&key)?.pem(),
            key: key.serialize_pem(),
        }))
    }

    /// A manager's, but for what `change` does to it.
    fn signs(&self, change: impl FnOnce(&mut CertificateParams)) -> Result<Pair> {
        let own = KeyPair::from_pem(&self.0.key)?;
        let issuer = Issuer::from_ca_cert_pem(&self.0.certificate, own)?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::DnsName(ROLE.try_into()?),
            SanType::URI("podmotion://node/node-7".try_into()?),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let key = KeyPair::generate()?;
        Ok(Pair {
            certificate: params.signed_by(&key, &issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }
}

/// A client that takes only a manager of the cluster for the server, as other managers do.
pub(super) struct Peer {
    config: Arc<ClientConfig>,
    address: SocketAddr,
}

impl Peer {
    fn new(
        trusted: &Authority,
        shown: Option<&Pair>,
        version: &'static SupportedProtocolVersion,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(
            trusted.0.certificate.as_bytes(),
        )?)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])?
            .with_root_certificates(roots);
        let config = match shown {
            None => builder.with_no_client_auth(),
            Some(pair) => builder.with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes())?],
                PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?,
            )?,
        };
        Ok(Self {
            config: Arc::new(config),
            address: SERVER,
        })
    }

    /// One without a certificate.
    pub(super) fn anonymous(cluster: &Cluster) -> Result<Self> {
        Self::new(&Authority::of(cluster)?, None, &TLS13)
    }

    pub(super) fn connect(&self) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let stream = TcpStream::connect(self.address).context("connect")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let name = ServerName::try_from(ROLE)?;
        let connection = ClientConnection::new(Arc::clone(&self.config), name)?;
        Ok(StreamOwned::new(connection, stream))
    }

    /// The answer to a request, with its head: what came until the end of the connection.
    pub(super) fn ask(&self, head: &str) -> Result<String> {
        let mut stream = self.connect()?;
        stream
            .write_all(format!("{head}\r\nHost: node\r\nConnection: close\r\n\r\n").as_bytes())
            .context("write")?;
        read(&mut stream)
    }
}

/// Until the end of the connection.
pub(super) fn read(stream: &mut StreamOwned<ClientConnection, TcpStream>) -> Result<String> {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // A server need not say that it says no more once it has answered.
        Err(error) if answer.is_empty() => return Err(error).context("read"),
        _ => {}
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Fails unless the handshake did, for this reason.
fn refused(peer: &Peer, words: &str) -> Result<()> {
    match peer.ask("GET /v1/peer HTTP/1.1") {
        Ok(answer) => bail!("answered: {answer}"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains(words), "no {words:?} in {said:?}");
            Ok(())
        }
    }
}

pub(super) fn only_certificates_of_the_clusters_authority_get_a_handshake(
    cluster: &Cluster,
) -> Result<()> {
    let _stage = Stage::without_pod(cluster)?;
    let authority = Authority::of(cluster)?;
    let ask = |pair: &Pair| {
        let peer = Peer::new(&authority, Some(pair), &TLS13)?;
        peer.ask("GET /v1/peer HTTP/1.1")
    };
    let said = ask(&authority.signs(|_| {})?)?;
    ensure!(
        said.starts_with("HTTP/1.1 200 ") && said.contains(r#"{"node":"node-1","version":"#),
        "{said}"
    );

    // By name the cluster's, but for the signature; and one that does not even claim that.
    for (name, words) in [("Podmotion", "DecryptError"), ("Other", "UnknownCA")] {
        let forged = Authority::foreign(name)?.signs(|_| {})?;
        refused(&Peer::new(&authority, Some(&forged), &TLS13)?, words)?;
    }
    let hour = time::Duration::hours(1);
    let expired = authority.signs(|params| {
        params.not_before = time::OffsetDateTime::now_utc() - 2 * hour;
        params.not_after = time::OffsetDateTime::now_utc() - hour;
    })?;
    refused(
        &Peer::new(&authority, Some(&expired), &TLS13)?,
        "CertificateExpired",
    )?;
    let servers = authority
        .signs(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])?;
    refused(&Peer::new(&authority, Some(&servers), &TLS13)?, "alert")?;
    let good = authority.signs(|_| {})?;
    refused(
        &Peer::new(&authority, Some(&good), &TLS12)?,
        "ProtocolVersion",
    )?;

    // Of the authority, but nobody that it signs for: a handshake, and no more.
    let other = authority.signs(|params| {
        params.subject_alt_names = vec![SanType::URI("podmotion://node/x".try_into().unwrap())];
    })?;
    let said = ask(&other)?;
    ensure!(
        said.starts_with("HTTP/1.1 403 ") && said.contains("not a manager's"),
        "{said}"
    );
    // A manager is no user.
    let peer = Peer::new(&authority, Some(&good), &TLS13)?;
    let said = peer.ask("GET /v1/containers HTTP/1.1")?;
    ensure!(said.starts_with("HTTP/1.1 401 "), "{said}");
    let said = Peer::anonymous(cluster)?.ask("GET /v1/peer HTTP/1.1")?;
    ensure!(said.starts_with("HTTP/1.1 403 "), "{said}");
    Ok(())
}

pub(super) fn managers_agree_on_one_authority_and_on_the_next(cluster: &Cluster) -> Result<()> {
    let kubectl = cluster.kubectl();
    let delete = [
        "delete",
        "secret",
        SECRET,
        "--namespace",
        NAMESPACE,
        "--ignore-not-found",
    ];
    kubectl.run(&delete)?;
    let stage = Stage::without_pod(cluster)?;
    // All at once, where there is none: one makes it.
    kubectl.run(&delete)?;
    let _others = thread::scope(|scope| {
        let stage = &stage;
        let starting = [8091, 8092, 8093].map(|port| scope.spawn(move || stage.manager(port)));
        let started = starting.map(|one| one.join());
        started
            .into_iter()
            .map(|one| one.unwrap_or_else(|_| bail!("a thread has panicked")))
            .collect::<Result<Vec<_>>>()
    })?;
    let first = Authority::of(cluster)?;
    all_take(&first)?;

    kubectl.run(&delete)?;
    let patience = format!("--timeout={}s", PATIENCE.as_secs());
    let secret = format!("secret/{SECRET}");
    kubectl.run(&[
        "wait",
        &patience,
        "--namespace",
        NAMESPACE,
        "--for=create",
        &secret,
    ])?;
    let second = Authority::of(cluster)?;
    ensure!(second.0.certificate != first.0.certificate);
    all_take(&second)?;
    let old = first.signs(|_| {})?;
    // It has the new one's name, but not its signature.
    refused(&Peer::new(&second, Some(&old), &TLS13)?, "DecryptError")
}

/// Waits until each manager shows a certificate of this authority and takes one: they hear of it from the API
/// server, and nobody else is told.
fn all_take(authority: &Authority) -> Result<()> {
    let pair = authority.signs(|_| {})?;
    let deadline = Instant::now() + PATIENCE;
    for port in 8090..=8093 {
        let mut peer = Peer::new(authority, Some(&pair), &TLS13)?;
        peer.address.set_port(port);
        loop {
            match peer.ask("GET /v1/peer HTTP/1.1") {
                Ok(said) if said.starts_with("HTTP/1.1 200 ") => break,
                said => ensure!(Instant::now() < deadline, "port {port}: {said:?}"),
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}
