//! Where the server's certificate comes from. A source is read afresh whenever it hints that it changed.

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
    secret::{CaSecret, SecretError},
};

/// How often files are read again. Their content is compared: a Secret mounted as a volume is swapped by renaming a
/// folder above the file, which file notification misses.
const POLL: Duration = Duration::from_secs(10);

/// Why a source has nothing to serve.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The CA.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The leaf.
    #[error(transparent)]
    Leaf(#[from] LeafError),
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Files that hold something else.
    #[error("{certificate} and {key}: {source}", certificate = certificate.display(), key = key.display())]
    Files {
        /// The certificate's.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// What is wrong.
        source: LeafError,
    },
}

/// What a source gives.
#[derive(Clone, Debug)]
pub struct Material {
    /// To serve.
    pub leaf: Leaf,
    /// Who signed it, where that is ours to know.
    pub issuer: Option<CertificateDer<'static>>,
    /// To publish, PEM; none where somebody else publishes it.
    pub bundle: Option<String>,
}

/// A source of certificates.
pub trait Source: Send + Sync + 'static {
    /// Reads the source afresh. Gives the same leaf as before where nothing changed and it is not due.
    fn load(&mut self, now: OffsetDateTime) -> impl Future<Output = Result<Material, SourceError>> + Send;

    /// An item whenever [`Source::load`] may give something else.
    fn hints(&self) -> BoxStream<'static, ()>;

    /// Whether the source has to be asked again because its leaf is at two thirds of its life.
    fn is_due(&self, now: OffsetDateTime) -> bool;
}

/// Leaves minted in memory from the CA in a Secret.
pub struct SecretSource {
    secret: CaSecret,
    names: ServerNames,
    held: Option<Material>,
}

impl SecretSource {
    /// Leaves for `names` from the CA in `secret`.
    pub fn new(secret: CaSecret, names: ServerNames) -> Self {
        Self { secret, names, held: None }
    }
}

impl Source for SecretSource {
    async fn load(&mut self, now: OffsetDateTime) -> Result<Material, SourceError> {
        let trusted = self.held.as_ref().and_then(|held| held.bundle.as_deref());
        let ca = self.secret.ensure(trusted, now).await?;
        let leaf = match &self.held {
            Some(held) if held.issuer.as_ref() == Some(ca.certificate()) && !held.leaf.is_due(now) => {
                held.leaf.clone()
            }
            _ => Leaf::mint(&ca, &self.names, now)?,
        };
        let material =
            Material { leaf, issuer: Some(ca.certificate().clone()), bundle: Some(ca.bundle().to_owned()) };
        self.held = Some(material.clone());
        Ok(material)
    }

    fn hints(&self) -> BoxStream<'static, ()> {
        changes(self.secret.api.clone(), &self.secret.name, "secrets").boxed()
    }

    fn is_due(&self, now: OffsetDateTime) -> bool {
        self.held.as_ref().is_none_or(|held| held.leaf.is_due(now))
    }
}

/// Files that somebody else keeps, such as cert-manager through a mounted Secret.
#[derive(Clone, Debug)]
pub struct FileSource {
    /// Certificate chain, PEM, the leaf first.
    pub certificate: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// CAs to publish, PEM; none where somebody else (cert-manager's cainjector) publishes them.
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

impl Source for FileSource {
    async fn load(&mut self, _: OffsetDateTime) -> Result<Material, SourceError> {
        let (certificate, key, bundle) = self.read().await?;
        let leaf = Leaf::from_pem(&certificate, &key).map_err(|source| SourceError::Files {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            source,
        })?;
        Ok(Material { leaf, issuer: None, bundle })
    }

    fn hints(&self) -> BoxStream<'static, ()> {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        stream::unfold((self.clone(), ticks, None), |(source, mut ticks, seen)| async move {
            loop {
                ticks.tick().await;
                // An error is a state too: `load` names it, once.
                let now = source.read().await.map_err(|e| e.to_string());
                if seen.as_ref() != Some(&now) {
                    return Some(((), (source, ticks, Some(now))));
                }
            }
        })
        .boxed()
    }

    /// Files are renewed by whoever keeps them.
    fn is_due(&self, _: OffsetDateTime) -> bool {
        false
    }
}

async fn read(path: &PathBuf) -> Result<String, SourceError> {
    tokio::fs::read_to_string(path).await.map_err(|source| SourceError::Read { path: path.clone(), source })
}

/// An item whenever the object `name` may have changed; its reader reads it afresh.
pub(crate) fn changes<K>(api: Api<K>, name: &str, resource: &str) -> impl Stream<Item = ()> + Send + use<K>
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    watch::events(watcher(api, config), resource)
        .filter_map(|event| future::ready((!matches!(event, Event::Init)).then_some(())))
}

/// A source that reads the CA in Secret `namespace/secret`.
pub(crate) fn from_secret(client: Client, namespace: &str, secret: &str, names: ServerNames) -> SecretSource {
    SecretSource::new(CaSecret::new(client, namespace, secret), names)
}
