//! Creates a CA, and reads one from its Secret.

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;

use crate::review_path::PathKey;

/// Secret key of the CA's certificate (PEM).
pub(crate) const TLS_CRT: &str = "tls.crt";
/// Secret key of the CA's private key (PKCS#8 PEM).
const TLS_KEY: &str = "tls.key";
/// Secret key of all CAs that clients should trust (PEM). It becomes the `caBundle`.
const CA_CRT: &str = "ca.crt";

/// Validity of a CA. Long, because nothing replaces a valid CA.
const CA_VALIDITY: Duration = Duration::days(3650);
/// Certificates are valid this long before they are issued, for clients whose clocks are behind.
pub(crate) const BACKDATE: Duration = Duration::hours(1);

/// Why the CA Secret cannot be used. The message names the Secret's key and the fault.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The Secret has no such key.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A key of the Secret has invalid content.
    #[error("{key}: {why}")]
    Invalid {
        /// The Secret's key.
        key: &'static str,
        /// The fault.
        why: String,
    },
    /// The CA is not valid yet, or no longer.
    #[error(
        "{TLS_CRT}: valid from {} until {}, but it is {} now",
        rfc3339(*from), rfc3339(*until), rfc3339(*now)
    )]
    NotValid {
        /// Start of validity.
        from: OffsetDateTime,
        /// End of validity.
        until: OffsetDateTime,
        /// The current time.
        now: OffsetDateTime,
    },
    /// A certificate cannot be created.
    #[error("cannot create a certificate: {0}")]
    Create(#[from] rcgen::Error),
}

/// A usable CA: the key belongs to the certificate, and the certificate is valid.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    /// Intermediate certificates to send after a leaf. Empty if the CA is a root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    certificate: CertificateDer<'static>,
    bundle: String,
    /// The same for every replica.
    pub(crate) path_key: PathKey,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl CertificateAuthority {
    /// Reads and checks `secret`: key and certificate match, the certificate is a CA, valid at `now`, and in the bundle.
    ///
    /// # Errors
    /// Names the invalid key of the Secret.
    pub fn from_secret(secret: &Secret, now: OffsetDateTime) -> Result<Self, CaError> {
        let chain = certificates(TLS_CRT, text(secret, TLS_CRT)?)?;
        let bundle = match text(secret, CA_CRT) {
            Ok(bundle) => bundle.to_owned(),
            // A CA that was not created by us may have no bundle.
            Err(CaError::Missing(_)) => text(secret, TLS_CRT)?.to_owned(),
            Err(error) => return Err(error),
        };
        let key = KeyPair::from_pem(text(secret, TLS_KEY)?)
            .map_err(|e| invalid(TLS_KEY, format!("not a private key in PKCS#8 PEM ({e})")))?;
        let certificate = chain[0].clone();
        if !certificates(CA_CRT, &bundle)?.contains(&certificate) {
            return Err(invalid(CA_CRT, format!("does not contain the certificate of {TLS_CRT}")));
        }
        let parsed = parse(TLS_CRT, &certificate)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(invalid(TLS_KEY, format!("is not the key of {TLS_CRT}")));
        }
        if !parsed.is_ca() {
            return Err(invalid(TLS_CRT, "is not a CA (basic constraints)".into()));
        }
        let (from, until) = validity(&parsed);
        if now < from || now >= until {
            return Err(CaError::NotValid { from, until, now });
        }
        let root = parsed.issuer() == parsed.subject();
        let path_key = PathKey::derived_from(key.serialized_der());
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|e| invalid(TLS_CRT, format!("cannot sign with it ({e})")))?;
        let chain = if root { Vec::new() } else { chain };
        Ok(Self { issuer, chain, certificate, bundle, path_key, not_before: from, not_after: until })
    }

    /// All CAs that clients should trust (PEM).
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Start and end of the CA's validity.
    pub fn validity(&self) -> (OffsetDateTime, OffsetDateTime) {
        (self.not_before, self.not_after)
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

/// A Secret `namespace/name` with a new CA. Certificates of `trusted` that are valid at `now` stay in the bundle, so that
/// clients trust leaves of the previous CA until they are replaced.
///
/// # Errors
/// If the system has no randomness for a key.
pub fn new_secret(
    namespace: &str,
    name: &str,
    trusted: Option<&str>,
    now: OffsetDateTime,
) -> Result<Secret, CaError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = now - BACKDATE;
    params.not_after = now + CA_VALIDITY;
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let mut bundle = ca.pem();
    for old in trusted.map(|pem| certificates(CA_CRT, pem)).transpose()?.unwrap_or_default() {
        if parse(CA_CRT, &old).is_ok_and(|parsed| now < validity(&parsed).1) {
            bundle.push_str(&to_pem(&old));
        }
    }
    let data = [(TLS_CRT, ca.pem()), (TLS_KEY, ca.key().serialize_pem()), (CA_CRT, bundle)];
    Ok(Secret {
        metadata: ObjectMeta {
            namespace: Some(namespace.into()),
            name: Some(name.into()),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".into()),
        data: Some(data.into_iter().map(|(k, v)| (k.to_owned(), ByteString(v.into_bytes()))).collect()),
        ..Secret::default()
    })
}

/// Start and end of a certificate's validity.
pub(crate) fn validity(certificate: &X509Certificate<'_>) -> (OffsetDateTime, OffsetDateTime) {
    let validity = certificate.validity();
    (validity.not_before.to_datetime(), validity.not_after.to_datetime())
}

pub(crate) fn parse<'a>(
    key: &'static str,
    der: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, CaError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der)
        .map_err(|e| invalid(key, format!("not an X.509 certificate ({e})")))?;
    Ok(certificate)
}

/// The certificates in a PEM text. Having none is an error.
pub(crate) fn certificates(key: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| invalid(key, format!("not PEM ({e})")))?;
    if found.is_empty() { Err(invalid(key, "contains no certificate in PEM".into())) } else { Ok(found) }
}

fn to_pem(der: &CertificateDer<'_>) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        // Base64 is ASCII, so every index is a character boundary.
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

fn text<'a>(secret: &'a Secret, key: &'static str) -> Result<&'a str, CaError> {
    let bytes = secret
        .data
        .as_ref()
        .and_then(|data| data.get(key))
        .filter(|bytes| !bytes.0.is_empty())
        .ok_or(CaError::Missing(key))?;
    std::str::from_utf8(&bytes.0).map_err(|_| invalid(key, "not text (expected PEM)".into()))
}

/// RFC 3339 text in whole seconds, the resolution of certificates: `2026-11-21T13:10:32Z`.
pub fn rfc3339(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC);
    let (hour, minute, second) = at.to_hms();
    format!("{}T{hour:02}:{minute:02}:{second:02}Z", at.date())
}

fn invalid(key: &'static str, why: String) -> CaError {
    CaError::Invalid { key, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap()
    }

    fn secret() -> Secret {
        new_secret("ns", "ca", None, now()).unwrap()
    }

    fn set(secret: &mut Secret, key: &str, value: &str) {
        secret.data.as_mut().unwrap().insert(key.into(), ByteString(value.into()));
    }

    fn get(secret: &Secret, key: &'static str) -> String {
        text(secret, key).unwrap().to_owned()
    }

    fn rejects(secret: &Secret, part: &str) {
        let error = CertificateAuthority::from_secret(secret, now()).err().expect("accepted").to_string();
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }

    #[test]
    fn a_new_secret_can_be_read() {
        let ca = CertificateAuthority::from_secret(&secret(), now()).unwrap();
        let (from, until) = ca.validity();
        assert!(from < now() && until > now() + Duration::days(3000));
        assert!(ca.chain.is_empty(), "a root is not sent to clients");
        assert_eq!(certificates(CA_CRT, ca.bundle()).unwrap(), [ca.certificate().clone()]);
    }

    #[test]
    fn trusted_certificates_stay_in_the_bundle_while_valid() {
        let old = secret();
        let new = new_secret("ns", "ca", Some(&get(&old, CA_CRT)), now()).unwrap();
        let both = certificates(CA_CRT, &get(&new, CA_CRT)).unwrap();
        assert_eq!(both.len(), 2);
        assert_eq!(both[1], certificates(TLS_CRT, &get(&old, TLS_CRT)).unwrap()[0]);

        let late = now() + Duration::days(4000);
        let later = new_secret("ns", "ca", Some(&get(&old, CA_CRT)), late).unwrap();
        assert_eq!(certificates(CA_CRT, &get(&later, CA_CRT)).unwrap().len(), 1, "an expired CA is dropped");
    }

    #[test]
    fn errors_name_the_invalid_key_and_the_fault() {
        rejects(&Secret::default(), "tls.crt is missing");

        let mut s = secret();
        s.data.as_mut().unwrap().remove(TLS_KEY);
        rejects(&s, "tls.key is missing");

        let mut s = secret();
        set(&mut s, TLS_CRT, "garbage");
        rejects(&s, "tls.crt: contains no certificate");

        let mut s = secret();
        set(&mut s, TLS_CRT, "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n");
        rejects(&s, "tls.crt: not PEM");

        let mut s = secret();
        s.data.as_mut().unwrap().insert(TLS_CRT.into(), ByteString(vec![0xff, 0xfe]));
        rejects(&s, "tls.crt: not text");

        let mut s = secret();
        set(&mut s, TLS_KEY, "garbage");
        rejects(&s, "tls.key: not a private key");

        let mut s = secret();
        set(&mut s, TLS_KEY, &get(&secret(), TLS_KEY));
        rejects(&s, "tls.key: is not the key of tls.crt");

        let mut s = secret();
        set(&mut s, CA_CRT, &get(&secret(), CA_CRT));
        rejects(&s, "ca.crt: does not contain the certificate of tls.crt");
    }

    #[test]
    fn a_leaf_is_not_accepted_as_ca() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["x".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (now() - BACKDATE, now() + Duration::days(1));
        let leaf = params.self_signed(&key).unwrap();
        let mut s = secret();
        set(&mut s, TLS_CRT, &leaf.pem());
        set(&mut s, CA_CRT, &leaf.pem());
        set(&mut s, TLS_KEY, &key.serialize_pem());
        rejects(&s, "is not a CA");
    }

    #[test]
    fn a_ca_outside_its_validity_is_rejected() {
        let s = secret();
        for clock in [now() - Duration::days(1), now() + Duration::days(3651)] {
            let error = CertificateAuthority::from_secret(&s, clock).err().expect("accepted");
            assert!(matches!(error, CaError::NotValid { .. }), "{error}");
            assert!(error.to_string().contains("valid from 2026-09-21T"), "{error}");
        }
    }
}
