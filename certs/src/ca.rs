//! The CA: made, read back from its Secret, and what it signs.

use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::{Duration, OffsetDateTime};
use x509_parser::certificate::X509Certificate;

use crate::rfc3339;

/// Key in the Secret: the CA's certificate, PEM.
pub const TLS_CRT: &str = "tls.crt";
/// Key in the Secret: the CA's private key, PKCS#8 PEM.
pub const TLS_KEY: &str = "tls.key";
/// Key in the Secret: every CA that clients are to trust, PEM; this is what becomes the `caBundle`.
pub const CA_CRT: &str = "ca.crt";

/// How long a CA lives. Long, because nothing replaces it while it is valid.
const CA_LIFE: Duration = Duration::days(3650);
/// Certificates begin this much in the past, for clocks that are behind ours.
pub(crate) const BACKDATE: Duration = Duration::hours(1);

/// Why a CA Secret cannot be used. `Display` says what is wrong with which key.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A key of the Secret is absent.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A key of the Secret holds something else.
    #[error("{key}: {why}")]
    Broken {
        /// Which key.
        key: &'static str,
        /// What was found.
        why: String,
    },
    /// The CA's time has not come, or is over.
    #[error(
        "{TLS_CRT}: valid from {} until {}, but it is {} now",
        rfc3339(*from), rfc3339(*until), rfc3339(*now)
    )]
    NotValid {
        /// Begin of its validity.
        from: OffsetDateTime,
        /// End of its validity.
        until: OffsetDateTime,
        /// The clock it was held against.
        now: OffsetDateTime,
    },
    /// Nothing could be made or signed.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// A usable CA: key and certificate belong together and are valid now.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Certificates to send behind a leaf: the CA's own unless it is a root.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    certificate: CertificateDer<'static>,
    bundle: String,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Authority {
    /// Reads `secret` and checks it: key and certificate parse and match, it is a CA, valid at `now`, and in the bundle.
    ///
    /// # Errors
    /// Names the key of the Secret that is wrong.
    pub fn from_secret(secret: &Secret, now: OffsetDateTime) -> Result<Self, CaError> {
        let chain = certificates(TLS_CRT, text(secret, TLS_CRT)?)?;
        let bundle = match text(secret, CA_CRT) {
            Ok(bundle) => bundle.to_owned(),
            // A CA from elsewhere may come without one; it is then alone in the bundle.
            Err(CaError::Missing(_)) => text(secret, TLS_CRT)?.to_owned(),
            Err(error) => return Err(error),
        };
        let key = KeyPair::from_pem(text(secret, TLS_KEY)?)
            .map_err(|e| broken(TLS_KEY, format!("not a private key in PKCS#8 PEM ({e})")))?;
        let certificate = chain[0].clone();
        if !certificates(CA_CRT, &bundle)?.contains(&certificate) {
            return Err(broken(CA_CRT, format!("does not hold the certificate of {TLS_CRT}")));
        }
        let parsed = parse(TLS_CRT, &certificate)?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(broken(TLS_KEY, format!("is not the key of {TLS_CRT}")));
        }
        if !parsed.is_ca() {
            return Err(broken(TLS_CRT, "is not a CA (basic constraints)".into()));
        }
        let (from, until) = validity(&parsed);
        if now < from || now >= until {
            return Err(CaError::NotValid { from, until, now });
        }
        let root = parsed.issuer() == parsed.subject();
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|e| broken(TLS_CRT, format!("cannot sign with it ({e})")))?;
        let chain = if root { Vec::new() } else { chain };
        Ok(Self { issuer, chain, certificate, bundle, not_before: from, not_after: until })
    }

    /// PEM of every CA that clients are to trust.
    pub fn bundle(&self) -> &str {
        &self.bundle
    }

    /// The CA's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Begin and end of its validity.
    pub fn validity(&self) -> (OffsetDateTime, OffsetDateTime) {
        (self.not_before, self.not_after)
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

/// A Secret `namespace/name` with a new CA. The certificates of `trusted` that are valid at `now` stay in its bundle, so
/// that leaves of a CA that was there before are trusted until they are replaced.
///
/// # Errors
/// Where the system has no randomness to make a key from.
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
    params.not_after = now + CA_LIFE;
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

/// Begin and end of a certificate's validity.
pub(crate) fn validity(certificate: &X509Certificate<'_>) -> (OffsetDateTime, OffsetDateTime) {
    let validity = certificate.validity();
    (validity.not_before.to_datetime(), validity.not_after.to_datetime())
}

pub(crate) fn parse<'a>(
    key: &'static str,
    der: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, CaError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der)
        .map_err(|e| broken(key, format!("not an X.509 certificate ({e})")))?;
    Ok(certificate)
}

/// The certificates of a PEM text, at least one.
pub(crate) fn certificates(key: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| broken(key, format!("not PEM ({e})")))?;
    if found.is_empty() { Err(broken(key, "holds no certificate in PEM".into())) } else { Ok(found) }
}

fn to_pem(der: &CertificateDer<'_>) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        // Base64 is ASCII, so any cut is a character boundary.
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
    std::str::from_utf8(&bytes.0).map_err(|_| broken(key, "not text (expected PEM)".into()))
}

fn broken(key: &'static str, why: String) -> CaError {
    CaError::Broken { key, why }
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
        let error = Authority::from_secret(secret, now()).err().expect("accepted").to_string();
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }

    #[test]
    fn a_new_secret_is_read_back() {
        let ca = Authority::from_secret(&secret(), now()).unwrap();
        let (from, until) = ca.validity();
        assert!(from < now() && until > now() + Duration::days(3000));
        assert!(ca.chain.is_empty(), "a root is not sent along");
        assert_eq!(certificates(CA_CRT, ca.bundle()).unwrap(), [ca.certificate().clone()]);
    }

    #[test]
    fn what_was_trusted_stays_in_the_bundle_while_valid() {
        let old = secret();
        let young = new_secret("ns", "ca", Some(&get(&old, CA_CRT)), now()).unwrap();
        let both = certificates(CA_CRT, &get(&young, CA_CRT)).unwrap();
        assert_eq!(both.len(), 2);
        assert_eq!(both[1], certificates(TLS_CRT, &get(&old, TLS_CRT)).unwrap()[0]);

        let late = now() + Duration::days(4000);
        let later = new_secret("ns", "ca", Some(&get(&old, CA_CRT)), late).unwrap();
        assert_eq!(certificates(CA_CRT, &get(&later, CA_CRT)).unwrap().len(), 1, "an expired CA is dropped");
    }

    #[test]
    fn broken_secrets_name_the_key_and_the_fault() {
        rejects(&Secret::default(), "tls.crt is missing");

        let mut s = secret();
        s.data.as_mut().unwrap().remove(TLS_KEY);
        rejects(&s, "tls.key is missing");

        let mut s = secret();
        set(&mut s, TLS_CRT, "garbage");
        rejects(&s, "tls.crt: holds no certificate");

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
        rejects(&s, "ca.crt: does not hold the certificate of tls.crt");
    }

    #[test]
    fn a_leaf_is_no_ca() {
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
    fn validity_is_held_against_the_clock() {
        let s = secret();
        for clock in [now() - Duration::days(1), now() + Duration::days(3651)] {
            let error = Authority::from_secret(&s, clock).err().expect("accepted");
            assert!(matches!(error, CaError::NotValid { .. }), "{error}");
            assert!(error.to_string().contains("valid from 2026-09-21T"), "{error}");
        }
    }
}
