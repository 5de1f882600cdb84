//! The cluster's certificates, service account key and kubeconfigs.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

use crate::harness::error::{Error, Result};
use crate::harness::kubeconfig::{base64, kubeconfig, write_private};

/// The certificate authority of one cluster and the folder its files are in.
pub(super) struct Pki {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// Creates the authority and the service account key.
    pub(super) fn create(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(Error::io("creating the folder for certificates"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("job-handler-e2e-ca", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let issuer = CertifiedIssuer::self_signed(params, key()?).map_err(minting)?;
        let pki = Self { folder: folder.to_owned(), issuer };
        pki.write("ca.crt", &pki.issuer.pem())?;
        let accounts = key()?;
        pki.write("service-accounts.key", &accounts.serialize_pem())?;
        pki.write("service-accounts.pub", &accounts.public_key_pem())?;
        Ok(pki)
    }

    /// The path of one of the files.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Writes `NAME.crt` and `NAME.key`, the certificate of a server at these addresses.
    pub(super) fn server(&self, name: &str, user: &str, addresses: &[Ipv4Addr], dns: &[&str]) -> Result<()> {
        let ip = |address: &Ipv4Addr| Ok(SanType::IpAddress((*address).into()));
        let name_of = |dns: &&str| (*dns).try_into().map(SanType::DnsName).map_err(minting);
        let names = addresses.iter().map(ip).chain(dns.iter().map(name_of)).collect::<Result<_>>()?;
        self.pair(name, self.leaf(user, None, ExtendedKeyUsagePurpose::ServerAuth, names)?)
    }

    /// Writes `NAME.crt` and `NAME.key`, the certificate of a client.
    pub(super) fn client(&self, name: &str, user: &str, group: Option<&str>) -> Result<()> {
        self.pair(name, self.leaf(user, group, ExtendedKeyUsagePurpose::ClientAuth, Vec::new())?)
    }

    fn pair(&self, name: &str, (certificate, key_pem): (String, String)) -> Result<()> {
        self.write(&format!("{name}.crt"), &certificate)?;
        self.write(&format!("{name}.key"), &key_pem)
    }

    /// Writes a kubeconfig for a user and group with a client certificate.
    pub(super) fn kubeconfig(
        &self,
        file: &Path,
        server: &str,
        user: &str,
        group: Option<&str>,
    ) -> Result<()> {
        let (certificate, key_pem) =
            self.leaf(user, group, ExtendedKeyUsagePurpose::ClientAuth, Vec::new())?;
        let user = json!({
            "client-certificate-data": base64(&certificate),
            "client-key-data": base64(&key_pem),
        });
        write_private(file, &kubeconfig(server, self.issuer.pem().as_bytes(), &user).to_string())
    }

    fn leaf(
        &self,
        user: &str,
        group: Option<&str>,
        usage: ExtendedKeyUsagePurpose,
        names: Vec<SanType>,
    ) -> Result<(String, String)> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = names;
        params.extended_key_usages = vec![usage];
        let key = key()?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(minting)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn write(&self, file: &str, content: &str) -> Result<()> {
        write_private(&self.path(file), content)
    }
}

fn name(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // RBAC takes the common name as the user and the organizations as its groups.
    name.push(DnType::CommonName, user);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}

fn key() -> Result<KeyPair> {
    KeyPair::generate().map_err(minting)
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn minting(error: rcgen::Error) -> Error {
    Error::Invalid(format!("creating the cluster's certificates: {error}"))
}
