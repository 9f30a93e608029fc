//! The cluster's authority: makes it, reads it, signs with it.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::{Parts, TlsError, certificates};
use super::peer;

/// How long an authority is good.
const AUTHORITY: Duration = Duration::days(365);
/// It is replaced when no more than this is left.
const LAST_DAYS: Duration = Duration::days(60);
/// How long a manager's certificate is good.
pub const OWN: Duration = Duration::hours(1);
/// Clocks of nodes may differ by this.
const SKEW: Duration = Duration::minutes(5);

/// An authority with its key.
pub struct Ca {
    what: String,
    certificate: CertificateDer<'static>,
    ends: i64,
    parts: Parts,
}

impl Ca {
    /// Makes the parts of a new one. Of the one before, which may be none, managers go on to trust what it has
    /// signed, until those certificates end.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn make(former: Option<&Self>, now: OffsetDateTime) -> Result<Parts, TlsError> {
        let failed = |source| TlsError::Sign {
            operation: "make an authority",
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("Podmotion");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = now - SKEW;
        params.not_after = now + AUTHORITY;
        let certificate = params.self_signed(&key).map_err(failed)?.pem();
        let former = former.map(|former| former.parts.certificate.clone());
        Ok(Parts {
            trusted: [certificate.clone().into_bytes(), former.unwrap_or_default()].concat(),
            certificate: certificate.into_bytes(),
            key: key.serialize_pem().into_bytes(),
        })
    }

    /// Of parts that are from `what`.
    ///
    /// # Errors
    /// When they are not those of an authority.
    pub fn read(what: &str, parts: Parts) -> Result<Self, TlsError> {
        let no = |cause: String| TlsError::Authority {
            what: what.to_owned(),
            cause,
        };
        let all = certificates(what, &parts.certificate)?;
        let certificate = all.into_iter().next().unwrap_or_else(|| Vec::new().into());
        let (_, parsed) =
            X509Certificate::from_der(&certificate).map_err(|error| no(error.to_string()))?;
        if !parsed.is_ca() {
            return Err(no("its certificate is not one of an authority".to_owned()));
        }
        let ends = parsed.validity().not_after.timestamp();
        let ca = Self {
            what: what.to_owned(),
            certificate,
            ends,
            parts,
        };
        let key = ca.key()?;
        if key.public_key_raw() != ca.public_key()? {
            return Err(no("the key is not the certificate's".to_owned()));
        }
        Ok(ca)
    }

    /// Whether it is time for another one.
    pub fn is_due(&self, now: OffsetDateTime) -> bool {
        self.ends - now.unix_timestamp() < LAST_DAYS.whole_seconds()
    }

    /// Signs a certificate for the manager of `node`, with a key of its own.
    ///
    /// # Errors
    /// When the library cannot.
    pub fn issue(&self, node: &str, now: OffsetDateTime) -> Result<Parts, TlsError> {
        let failed = |source| TlsError::Sign {
            operation: "sign the manager's certificate",
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::default();
        // Names have 64 characters at most there; who it is stands among the alternative names.
        params.distinguished_name = name("podmotion-manager");
        params.subject_alt_names = vec![
            SanType::DnsName(peer::ROLE.try_into().map_err(failed)?),
            SanType::URI(peer::uri(node).try_into().map_err(failed)?),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.not_before = now - SKEW;
        params.not_after = now + OWN;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, self.key()?).map_err(failed)?;
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        Ok(Parts {
            trusted: self.parts.trusted.clone(),
            certificate: certificate.pem().into_bytes(),
            key: key.serialize_pem().into_bytes(),
        })
    }

    fn key(&self) -> Result<KeyPair, TlsError> {
        let text = String::from_utf8_lossy(&self.parts.key);
        KeyPair::from_pem(&text).map_err(|error| TlsError::Authority {
            what: self.what.clone(),
            cause: format!("its key: {error}"),
        })
    }

    fn public_key(&self) -> Result<Vec<u8>, TlsError> {
        let (_, parsed) =
            X509Certificate::from_der(&self.certificate).map_err(|error| TlsError::Authority {
                what: self.what.clone(),
                cause: error.to_string(),
            })?;
        Ok(parsed.public_key().subject_public_key.data.to_vec())
    }
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

#[cfg(test)]
mod tests {
    use super::super::identity::Identity;
    use super::super::peer::{Peer, of_certificates};
    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    fn ca(former: Option<&Ca>, now: OffsetDateTime) -> Ca {
        Ca::read("a test", Ca::make(former, now).unwrap()).unwrap()
    }

    #[test]
    fn what_it_signs_says_which_manager_it_is() {
        let parts = ca(None, now()).issue("node-1.example", now()).unwrap();
        let chain = certificates("a test", &parts.certificate).unwrap();
        let node = "node-1.example".to_owned();
        assert_eq!(of_certificates(Some(&chain)), Ok(Some(Peer { node })));
        let identity = Identity::read("a test", &parts).unwrap();
        identity.server_config().unwrap();
    }

    #[test]
    fn it_is_replaced_before_it_ends_and_the_former_is_trusted_on() {
        let first = ca(None, now());
        assert!(!first.is_due(now()));
        let later = now() + AUTHORITY - LAST_DAYS + Duration::days(1);
        assert!(first.is_due(later));
        let second = ca(Some(&first), later);
        assert!(!second.is_due(later));
        let trusted = certificates("a test", &second.parts.trusted).unwrap();
        assert_eq!(trusted, [&second, &first].map(|ca| ca.certificate.clone()));
        // Not for ever: the one after it knows nothing of the first.
        let third = ca(Some(&second), later);
        let trusted = certificates("a test", &third.parts.trusted).unwrap();
        assert_eq!(trusted, [&third, &second].map(|ca| ca.certificate.clone()));
    }

    #[test]
    fn what_is_no_authority_is_refused_with_the_reason() {
        let authority = ca(None, now());
        let leaf = authority.issue("node-1", now()).unwrap();
        let other = Ca::make(None, now()).unwrap();
        let crossed = Parts {
            key: other.key,
            ..authority.parts.clone()
        };
        let empty = Parts {
            certificate: Vec::new(),
            ..authority.parts.clone()
        };
        for (parts, words) in [
            (leaf, "not one of an authority"),
            (crossed, "not the certificate's"),
            (empty, "no certificate"),
        ] {
            let error = Ca::read("Secret x", parts).err().unwrap().to_string();
            assert!(
                error.contains(words) && error.contains("Secret x"),
                "{error}"
            );
        }
    }
}
