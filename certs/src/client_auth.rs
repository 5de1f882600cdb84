//! Client certificates: where the apiserver presents one, nobody else can open a connection.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::ring,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

/// Which client certificates are accepted.
#[derive(Clone, Debug)]
pub struct ClientAuth {
    /// CAs that sign them (PEM); read once.
    pub ca_file: PathBuf,
    /// Accepted common names.
    pub names: Vec<String>,
}

/// Why client certificates cannot be checked.
#[derive(Debug, thiserror::Error)]
#[error("--client-ca-file {path}: {why}", path = path.display())]
pub struct ClientAuthError {
    path: PathBuf,
    why: String,
}

impl ClientAuth {
    /// Checks client certificates in handshakes.
    ///
    /// # Errors
    /// If the file cannot be read or has no CA.
    pub(crate) fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, ClientAuthError> {
        let wrong = |why: String| ClientAuthError { path: self.ca_file.clone(), why };
        let pem = std::fs::read(&self.ca_file).map_err(|error| wrong(error.to_string()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| wrong(format!("not PEM ({error})")))?;
            roots.add(certificate).map_err(|error| wrong(format!("cannot be used as a CA ({error})")))?;
        }
        let provider = Arc::new(ring::default_provider());
        let by_ca = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Arc::new(NamedClientVerifier { by_ca, names: self.names.clone() }))
    }
}

/// Accepts certificates of a CA with certain common names.
#[derive(Debug)]
struct NamedClientVerifier {
    by_ca: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl NamedClientVerifier {
    fn accepts_name(&self, certificate: &CertificateDer<'_>) -> bool {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
        let mut names = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        names.any(|name| self.names.iter().any(|accepted| accepted == name))
    }
}

impl ClientCertVerifier for NamedClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.by_ca.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.by_ca.verify_client_cert(end_entity, intermediates, now)?;
        if self.accepts_name(end_entity) {
            Ok(verified)
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_ca.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_ca.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_ca.supported_verify_schemes()
    }
}
