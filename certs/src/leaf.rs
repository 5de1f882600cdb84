//! Leaf certificates, which the server presents in TLS handshakes.

use std::sync::Arc;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject},
    sign::CertifiedKey,
};
use time::{Duration, OffsetDateTime};

use crate::ca::{self, BACKDATE, CaError, CertificateAuthority};

/// Validity of a leaf, unless its CA expires earlier.
const LEAF_VALIDITY: Duration = Duration::days(7);

/// Why a leaf cannot be created or read.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// A name that cannot be in a certificate.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    Name(String),
    /// Signing failed.
    #[error("cannot create a certificate: {0}")]
    Create(#[from] rcgen::Error),
    /// The certificate cannot be read.
    #[error(transparent)]
    Certificate(#[from] CaError),
    /// The private key cannot be read.
    #[error("not a private key in PEM: {0}")]
    Key(#[source] rustls::pki_types::pem::Error),
    /// Certificate and key do not match, or TLS does not support them.
    #[error("certificate and private key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

/// Valid DNS names and IP addresses of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerNames(Vec<String>);

impl ServerNames {
    /// The names of Service `service` in `namespace`, and the `extra` names.
    ///
    /// # Errors
    /// For a name that is neither a DNS name nor an IP address.
    pub(crate) fn of_service(service: &str, namespace: &str, extra: &[String]) -> Result<Self, LeafError> {
        let host = format!("{service}.{namespace}.svc");
        let mut names = vec![host.clone(), format!("{host}.cluster.local")];
        for name in extra {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        match names.iter().find(|name| ServerName::try_from(name.as_str()).is_err()) {
            Some(wrong) => Err(LeafError::Name(wrong.clone())),
            None => Ok(Self(names)),
        }
    }
}

/// A leaf certificate with its key.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    pub(crate) key: Arc<CertifiedKey>,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Leaf {
    /// Creates a key (ECDSA P-256) and a certificate for `names`, signed by `ca`.
    ///
    /// # Errors
    /// If the system has no randomness, or the CA's key cannot sign.
    pub(crate) fn issue(
        ca: &CertificateAuthority,
        names: &ServerNames,
        now: OffsetDateTime,
    ) -> Result<Self, LeafError> {
        let mut params = CertificateParams::new(names.0.clone())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "job-handler webhook");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let (ca_from, ca_until) = ca.validity();
        params.not_before = (now - BACKDATE).max(ca_from);
        params.not_after = (now + LEAF_VALIDITY).min(ca_until);
        let (not_before, not_after) = (params.not_before, params.not_after);

        let key = KeyPair::generate()?;
        let mut chain = vec![params.signed_by(&key, ca.issuer())?.into()];
        chain.extend(ca.chain.iter().cloned());
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Ok(Self { key: certified(chain, key)?, not_before, not_after })
    }

    /// Reads a certificate chain and its key in PEM.
    ///
    /// # Errors
    /// If they cannot be read or do not match.
    pub(crate) fn from_pem(chain: &str, key: &str) -> Result<Self, LeafError> {
        let chain = ca::certificates(ca::TLS_CRT, chain)?;
        let (not_before, not_after) = ca::validity(&ca::parse(ca::TLS_CRT, &chain[0])?);
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(LeafError::Key)?;
        Ok(Self { key: certified(chain, key)?, not_before, not_after })
    }

    /// Whether the leaf should be renewed: two thirds of its validity have passed at `now`.
    pub(crate) fn is_due(&self, now: OffsetDateTime) -> bool {
        now >= self.not_before + (self.not_after - self.not_before) * 2 / 3
    }

    /// Whether both are the same certificate.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert
    }

    pub(crate) fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, LeafError> {
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &ring::default_provider())?))
}

#[cfg(test)]
mod tests {
    use x509_parser::extensions::GeneralName;

    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap()
    }

    fn authority(at: OffsetDateTime) -> CertificateAuthority {
        CertificateAuthority::from_secret(&ca::new_secret("ns", "ca", None, at).unwrap(), at).unwrap()
    }

    #[test]
    fn a_leaf_has_the_names_of_the_service_and_the_extra_names() {
        let extra = ["127.0.0.1".to_owned(), "::1".to_owned(), "proxy.example".to_owned()];
        let names = ServerNames::of_service("job-handler", "ns", &extra).unwrap();
        let leaf = Leaf::issue(&authority(now()), &names, now()).unwrap();
        let parsed = ca::parse(ca::TLS_CRT, &leaf.key.cert[0]).unwrap();
        let found = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
        let wanted = [
            GeneralName::DNSName("job-handler.ns.svc"),
            GeneralName::DNSName("job-handler.ns.svc.cluster.local"),
            GeneralName::IPAddress(&[127, 0, 0, 1]),
            GeneralName::IPAddress(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            GeneralName::DNSName("proxy.example"),
        ];
        assert_eq!(found, &wanted);
    }

    #[test]
    fn the_error_quotes_an_invalid_name() {
        for bad in ["", "white space", "a..b", "300.1.2.3.4.x y"] {
            let error = ServerNames::of_service("job-handler", "ns", &[bad.to_owned()]).unwrap_err();
            assert!(error.to_string().contains(&format!("`{bad}`")), "{error}");
        }
    }

    #[test]
    fn a_leaf_is_due_at_two_thirds_of_its_validity() {
        let leaf =
            Leaf::issue(&authority(now()), &ServerNames::of_service("s", "ns", &[]).unwrap(), now()).unwrap();
        let life = leaf.not_after - leaf.not_before;
        assert_eq!(life, LEAF_VALIDITY + BACKDATE);
        let due = leaf.not_before + life * 2 / 3;
        assert!(!leaf.is_due(now()));
        assert!(!leaf.is_due(due - Duration::SECOND));
        assert!(leaf.is_due(due));
        // A machine that was suspended past the end.
        assert!(leaf.is_due(leaf.not_after + Duration::days(30)));
    }

    #[test]
    fn a_leaf_never_outlives_its_ca() {
        let ca = authority(now() - Duration::days(3648));
        let leaf = Leaf::issue(&ca, &ServerNames::of_service("s", "ns", &[]).unwrap(), now()).unwrap();
        assert_eq!(leaf.not_after(), ca.validity().1);
    }

    #[test]
    fn a_key_that_does_not_match_is_rejected() {
        let (a, b) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let chain = CertificateParams::new(vec!["x".to_owned()]).unwrap().self_signed(&a).unwrap().pem();
        assert!(Leaf::from_pem(&chain, &a.serialize_pem()).is_ok());
        let error = Leaf::from_pem(&chain, &b.serialize_pem()).unwrap_err().to_string();
        assert!(error.contains("cannot be used"), "{error}");
        let error = Leaf::from_pem(&chain, "garbage").unwrap_err().to_string();
        assert!(error.contains("private key"), "{error}");
    }
}
