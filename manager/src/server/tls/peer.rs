//! Which manager a client's certificate is of.
//!
//! That the cluster's authority has signed it is known from the handshake. Here it is made sure that it was
//! signed for a manager, as a client, and whose it is.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The name that all managers' certificates have.
pub const ROLE: &str = "manager.podmotion.komodor.com";

/// What the node's name stands behind.
const NODE: &str = "podmotion://node/";

/// Another manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its node.
    pub node: String,
}

/// Why a certificate of the cluster's authority is not a manager's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It is not to be read.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// It is a server's only.
    #[error("the certificate is not for clients")]
    NotForClients,
    /// Its name is another.
    #[error("the certificate is not a manager's: {ROLE} is not among its names")]
    NotAManager,
    /// It does not say of which node.
    #[error("the certificate does not name a node")]
    NoNode,
}

/// How the manager of `node` is called.
pub fn uri(node: &str) -> String {
    format!("{NODE}{node}")
}

/// Who has shown these certificates; nobody where none was shown.
///
/// # Errors
/// When somebody who is not a manager has.
pub fn of_certificates(shown: Option<&[CertificateDer<'_>]>) -> Result<Option<Peer>, PeerError> {
    let Some(certificate) = shown.and_then(<[_]>::first) else {
        return Ok(None);
    };
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| PeerError::Unreadable)?;
    let usage = parsed.extended_key_usage();
    let usage = usage.map_err(|_| PeerError::Unreadable)?;
    if !usage.is_some_and(|usage| usage.value.client_auth) {
        return Err(PeerError::NotForClients);
    }
    let names = parsed.subject_alternative_name();
    let names = names.map_err(|_| PeerError::Unreadable)?;
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    if !names.contains(&GeneralName::DNSName(ROLE)) {
        return Err(PeerError::NotAManager);
    }
    let node = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(NODE),
        _ => None,
    });
    let node = node.filter(|node| !node.is_empty());
    let node = node.ok_or(PeerError::NoNode)?.to_owned();
    Ok(Some(Peer { node }))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType};

    use super::*;

    fn certificate(
        names: &[SanType],
        usages: &[ExtendedKeyUsagePurpose],
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn only_a_managers_client_certificate_is_a_peers() {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        let role = SanType::DnsName(ROLE.try_into().unwrap());
        let node = SanType::URI(uri("n1").try_into().unwrap());
        let other = SanType::DnsName("other.example".try_into().unwrap());
        let nobody = SanType::URI(NODE.try_into().unwrap());
        let good = [role.clone(), node.clone()];
        let peer = |names: &[SanType], usages: &[ExtendedKeyUsagePurpose]| {
            of_certificates(Some(&[certificate(names, usages)]))
        };
        assert_eq!(of_certificates(None), Ok(None));
        assert_eq!(
            peer(&good, &[ServerAuth, ClientAuth]),
            Ok(Some(Peer { node: "n1".into() }))
        );
        for (names, usages, error) in [
            (&good[..], &[ServerAuth][..], PeerError::NotForClients),
            (&good, &[], PeerError::NotForClients),
            (&[other, node], &[ClientAuth], PeerError::NotAManager),
            (
                std::slice::from_ref(&role),
                &[ClientAuth],
                PeerError::NoNode,
            ),
            (&[role.clone(), nobody], &[ClientAuth], PeerError::NoNode),
        ] {
            assert_eq!(peer(names, usages), Err(error));
        }
        let garbage = CertificateDer::from(vec![1, 2, 3]);
        assert_eq!(
            of_certificates(Some(&[garbage])),
            Err(PeerError::Unreadable)
        );
    }
}
