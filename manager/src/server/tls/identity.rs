//! A certificate with its key, and the authorities that others' certificates must be of.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{RootCertStore, ServerConfig};

/// What is wrong with certificates.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not there or cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Not in PEM, or not what it should be.
    #[error("{what} has no {expected} in PEM: {source}")]
    Pem {
        /// Where it was.
        what: String,
        /// What should be there.
        expected: &'static str,
        /// The library's answer.
        #[source]
        source: pem::Error,
    },
    /// An authority that cannot be one.
    #[error("the authority of {what}: {cause}")]
    Authority {
        /// Where it was.
        what: String,
        /// Why.
        cause: String,
    },
    /// The certificates cannot be checked.
    #[error("a verifier of certificates: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// The key does not fit the certificate, or neither can be used.
    #[error("certificate and key of {what}: {source}")]
    Unusable {
        /// Where they were.
        what: String,
        /// The library's answer.
        #[source]
        source: rustls::Error,
    },
    /// Signing went wrong.
    #[error("{operation}: {source}")]
    Sign {
        /// What was to be made.
        operation: &'static str,
        /// The library's answer.
        #[source]
        source: rcgen::Error,
    },
}

/// The three parts in PEM, as they are in files and in a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Certificates of the authorities that are trusted.
    pub trusted: Vec<u8>,
    /// The certificate, others that lead to an authority behind it.
    pub certificate: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
}

/// A certificate to show, and the authorities to trust.
#[derive(Debug)]
pub struct Identity {
    /// Where it is from, for errors.
    what: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Identity {
    /// Of parts that are from `what`.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn read(what: &str, parts: &Parts) -> Result<Self, TlsError> {
        let key = PrivateKeyDer::from_pem_slice(&parts.key).map_err(|source| TlsError::Pem {
            what: what.to_owned(),
            expected: "private key",
            source,
        })?;
        Ok(Self {
            what: what.to_owned(),
            chain: certificates(what, &parts.certificate)?,
            key,
            trusted: certificates(what, &parts.trusted)?,
        })
    }

    /// What connections are accepted with.
    ///
    /// # Errors
    /// When the key does not fit, or nothing can be trusted.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        for trusted in &self.trusted {
            roots
                .add(trusted.clone())
                .map_err(|error| TlsError::Authority {
                    what: self.what.clone(),
                    cause: error.to_string(),
                })?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()?;
        let unusable = |source| TlsError::Unusable {
            what: self.what.clone(),
            source,
        };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(unusable)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// All certificates of a text, which must be one at least.
///
/// # Errors
/// When there is none, or one that is not to be read.
pub fn certificates(what: &str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| TlsError::Pem {
        what: what.to_owned(),
        expected: "certificate",
        source,
    };
    let all: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(wrong)?;
    if all.is_empty() {
        return Err(wrong(pem::Error::NoItemsFound));
    }
    Ok(all)
}
