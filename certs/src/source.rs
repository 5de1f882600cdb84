//! Where the serving certificate comes from: issued from the CA in a Secret, or read from files.

use std::{fmt::Debug, future::Future, path::PathBuf, time::Duration};

use futures::{Stream, StreamExt, future, stream, stream::BoxStream};
use job_handler_shared::kube::watch;
use kube::{
    Api, Client,
    runtime::watcher::{self, Event, watcher},
};
use rustls::pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use crate::{
    leaf::{Leaf, LeafError, ServerNames},
    review_path::PathKey,
    secret::{CaSecret, SecretError},
};

/// How often files are read again. File notification is not used: it misses updates of mounted Secrets, which swap a
/// directory above the files.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Why a source has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The CA cannot be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A leaf cannot be created.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The files have invalid content.
    #[error("{certificate} and {key}: {source}", certificate = certificate.display(), key = key.display())]
    Files {
        /// Path of the certificate.
        certificate: PathBuf,
        /// Path of the key.
        key: PathBuf,
        /// The fault.
        source: LeafError,
    },
}

/// The certificate of a source.
#[derive(Clone, Debug)]
pub(crate) struct LoadedCertificate {
    /// The certificate to serve.
    pub(crate) leaf: Leaf,
    /// The CA that signed it, if known.
    pub(crate) issuer: Option<CertificateDer<'static>>,
    /// The `caBundle` to publish (PEM). None if another program publishes it.
    pub(crate) bundle: Option<String>,
    /// Creates the secrets in the paths of reviews. All replicas must have the same.
    pub(crate) path_key: PathKey,
}

/// A source of certificates.
pub(crate) trait CertificateSource: Send + Sync + 'static {
    /// Reads the source. Returns the previous leaf if nothing changed and it is not due for renewal.
    fn load(
        &mut self,
        now: OffsetDateTime,
    ) -> impl Future<Output = Result<LoadedCertificate, SourceError>> + Send;

    /// Yields an item whenever [`CertificateSource::load`] may return something else.
    fn changes(&self) -> BoxStream<'static, ()>;

    /// Whether the source should be loaded again because its leaf is due for renewal.
    fn is_due(&self, now: OffsetDateTime) -> bool;
}

/// Issues leaves in memory, from the CA in a Secret.
pub(crate) struct SecretSource {
    secret: CaSecret,
    names: ServerNames,
    loaded: Option<LoadedCertificate>,
}

impl SecretSource {
    /// Leaves for `names`, from the CA in Secret `namespace/secret`.
    pub(crate) fn new(client: Client, namespace: &str, secret: &str, names: ServerNames) -> Self {
        Self { secret: CaSecret::new(client, namespace, secret), names, loaded: None }
    }
}

impl CertificateSource for SecretSource {
    async fn load(&mut self, now: OffsetDateTime) -> Result<LoadedCertificate, SourceError> {
        let trusted = self.loaded.as_ref().and_then(|loaded| loaded.bundle.as_deref());
        let ca = self.secret.ensure(trusted, now).await?;
        let leaf = match &self.loaded {
            Some(loaded) if loaded.issuer.as_ref() == Some(ca.certificate()) && !loaded.leaf.is_due(now) => {
                loaded.leaf.clone()
            }
            _ => Leaf::issue(&ca, &self.names, now)?,
        };
        let loaded = LoadedCertificate {
            leaf,
            issuer: Some(ca.certificate().clone()),
            bundle: Some(ca.bundle().to_owned()),
            path_key: ca.path_key.clone(),
        };
        self.loaded = Some(loaded.clone());
        Ok(loaded)
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        watch_changes(self.secret.api.clone(), &self.secret.name, "secrets").boxed()
    }

    fn is_due(&self, now: OffsetDateTime) -> bool {
        self.loaded.as_ref().is_none_or(|loaded| loaded.leaf.is_due(now))
    }
}

/// Files that another program renews, such as cert-manager through a mounted Secret.
#[derive(Clone, Debug)]
pub struct FileSource {
    /// Certificate chain (PEM), leaf first.
    pub certificate: PathBuf,
    /// Private key (PEM).
    pub key: PathBuf,
    /// CAs to publish (PEM). None if another program publishes them, such as cert-manager's cainjector.
    pub ca: Option<PathBuf>,
}

impl FileSource {
    async fn read(&self) -> Result<(String, String, Option<String>), SourceError> {
        let ca = match &self.ca {
            Some(path) => Some(read(path).await?),
            None => None,
        };
        Ok((read(&self.certificate).await?, read(&self.key).await?, ca))
    }
}

impl CertificateSource for FileSource {
    async fn load(&mut self, _: OffsetDateTime) -> Result<LoadedCertificate, SourceError> {
        let (certificate, key, bundle) = self.read().await?;
        let leaf = Leaf::from_pem(&certificate, &key).map_err(|source| SourceError::Files {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        })?;
        let path_key = PathKey::derived_from(key.as_bytes());
        Ok(LoadedCertificate { leaf, issuer: None, bundle, path_key })
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        stream::unfold((self.clone(), ticks, None), |(source, mut ticks, seen)| async move {
            loop {
                ticks.tick().await;
                // A new error counts as a change, so that `load` reports it.
                let now = source.read().await.map_err(|e| e.to_string());
                if seen.as_ref() != Some(&now) {
                    return Some(((), (source, ticks, Some(now))));
                }
            }
        })
        .boxed()
    }

    /// Another program renews the files.
    fn is_due(&self, _: OffsetDateTime) -> bool {
        false
    }
}

async fn read(path: &PathBuf) -> Result<String, SourceError> {
    tokio::fs::read_to_string(path).await.map_err(|source| SourceError::Read { path: path.clone(), source })
}

/// Yields an item whenever the object `name` may have changed. Consumers read the object themselves, because a watch may be
/// behind.
pub(crate) fn watch_changes<K>(
    api: Api<K>,
    name: &str,
    resource: &str,
) -> impl Stream<Item = ()> + Send + use<K>
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    watch::events(watcher(api, config), resource)
        .filter_map(|event| future::ready((!matches!(event, Event::Init)).then_some(())))
}
