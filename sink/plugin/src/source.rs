//! Results as they are stored: a ConfigMap or a Secret with the same keys, and shards of the same kind.

use std::collections::BTreeMap;

use job_handler_shared::{
    keys,
    kube::error::{ApiError, call},
    result::manifest::{KEY, Manifest, SCHEMA_VERSION},
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use crate::ReadError;

pub use job_handler_shared::result::storage_kind::StorageKind;

/// Results are large: so many at a time.
const PAGE: u32 = 50;
/// A list that ran too old is begun again this often.
const RELISTS: usize = 3;

/// Where results are read from.
#[derive(Clone)]
pub struct Source {
    /// With the reader's rights.
    pub client: Client,
    /// None = all.
    pub namespace: Option<String>,
    /// In which kinds of objects to look.
    pub kinds: Vec<StorageKind>,
    /// The kind was asked for: then it is an error not to be allowed to look.
    pub asked: bool,
}

/// An object with its data.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its kind.
    pub kind: StorageKind,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Data, text or not.
    pub data: BTreeMap<String, Vec<u8>>,
}

/// A result.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What holds the manifest.
    pub object: Object,
    /// What the manifest says.
    pub manifest: Manifest,
    /// Bytes in the cluster: of the object's data, and of its shards.
    pub size: u64,
}

impl Stored {
    /// Reads an object that is labelled as a result.
    ///
    /// # Errors
    /// Where it has no manifest, or one that cannot be read.
    pub fn read(object: Object) -> Result<Self, ReadError> {
        let place = object.place();
        let manifest: Manifest = match object.data.get(KEY) {
            Some(text) => serde_json::from_slice(text).map_err(|error| {
                ReadError::Unreadable(format!(
                    "the `{KEY}` of {place} cannot be read: {error}. Was it edited by hand, or written by a newer \
                     job-handler than {}? `kubectl get {} -n {} {} -o yaml` shows what is there",
                    env!("CARGO_PKG_VERSION"),
                    object.kind.resource(),
                    object.namespace,
                    object.name
                ))
            })?,
            None => {
                return Err(ReadError::Unreadable(format!(
                    "{place} is labelled as a result and has no `{KEY}`"
                )));
            }
        };
        let own: usize = object.data.values().map(Vec::len).sum();
        let shards: usize = manifest.logs.iter().flat_map(|logs| &logs.shards).map(|shard| shard.bytes).sum();
        Ok(Self { size: (own + shards) as u64, object, manifest })
    }

    /// All facts, and where they are stored.
    pub fn to_value(&self) -> Value {
        let mut value = serde_json::to_value(&self.manifest).unwrap_or_default();
        value["storedIn"] = json!({
            "kind": self.object.kind.kind(),
            "namespace": self.object.namespace,
            "name": self.object.name,
            "bytes": self.size,
        });
        value
    }

    /// Whether a newer job-handler wrote it, that may have more to say than is known here.
    pub fn is_newer_than_we(&self) -> bool {
        self.manifest.schema_version > SCHEMA_VERSION
    }
}

impl Object {
    /// As messages call it.
    pub fn place(&self) -> String {
        format!("{} {}/{}", self.kind.kind(), self.namespace, self.name)
    }
}

impl Source {
    /// Hands all results with these labels to `each`, page by page. Gives the kinds that could not be looked at, with
    /// the apiserver's words.
    ///
    /// # Errors
    /// Where a call fails; to be refused Secrets, of which nobody need know, is not one.
    pub async fn each(
        &self,
        labels: &str,
        each: &mut impl FnMut(Object),
    ) -> Result<Vec<(StorageKind, String)>, ReadError> {
        let labels = match labels {
            "" => format!("{}=true", keys::CREATED),
            more => format!("{}=true,{more}", keys::CREATED),
        };
        let mut hidden = Vec::new();
        for kind in &self.kinds {
            let listed = match kind {
                StorageKind::ConfigMap => self.list::<ConfigMap>(&labels, each).await,
                StorageKind::Secret => self.list::<Secret>(&labels, each).await,
            };
            match listed {
                Err(ReadError::Rights { message, .. }) if *kind == StorageKind::Secret && !self.asked => {
                    hidden.push((*kind, message));
                }
                other => other?,
            }
        }
        Ok(hidden)
    }

    /// An object by its name.
    ///
    /// # Errors
    /// Where the call fails.
    pub async fn get(
        &self,
        kind: StorageKind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Object>, ReadError> {
        match kind {
            StorageKind::ConfigMap => self.get_as::<ConfigMap>(namespace, name).await,
            StorageKind::Secret => self.get_as::<Secret>(namespace, name).await,
        }
    }

    async fn get_as<K: Holds>(&self, namespace: &str, name: &str) -> Result<Option<Object>, ReadError> {
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        let what = format!("get {} {namespace}/{name}", K::HELD.resource());
        let found = call(&what, api.get_opt(name)).await.map_err(|error| sorted(error, K::HELD))?;
        Ok(found.map(Holds::object))
    }

    async fn list<K: Holds>(&self, labels: &str, each: &mut impl FnMut(Object)) -> Result<(), ReadError> {
        let api = match &self.namespace {
            Some(namespace) => Api::<K>::namespaced(self.client.clone(), namespace),
            None => Api::<K>::all(self.client.clone()),
        };
        let wide =
            self.namespace.as_deref().map_or("all namespaces".to_owned(), |n| format!("namespace {n}"));
        let what = format!("list {}s in {wide}", K::HELD.resource());
        let first = ListParams::default().labels(labels).limit(PAGE);
        let (mut params, mut relists, mut seen) = (first.clone(), 0, std::collections::HashSet::new());
        loop {
            match call(&what, api.list(&params)).await {
                Ok(page) => {
                    for item in page.items {
                        // After a new start, some come again.
                        if item.labels().get(keys::CREATED).is_some_and(|value| value == "true")
                            && seen.insert(item.uid().unwrap_or_default())
                        {
                            each(item.object());
                        }
                    }
                    match page.metadata.continue_.filter(|token| !token.is_empty()) {
                        Some(token) => params = params.continue_token(&token),
                        None => return Ok(()),
                    }
                }
                Err(error) if error.is_expired() && relists < RELISTS => {
                    relists += 1;
                    params = first.clone();
                }
                Err(error) => return Err(sorted(error, K::HELD)),
            }
        }
    }
}

/// What a result can be held in.
trait Holds:
    kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
    + Clone
    + std::fmt::Debug
    + serde::de::DeserializeOwned
{
    const HELD: StorageKind;
    fn object(self) -> Object;
}

impl Holds for ConfigMap {
    const HELD: StorageKind = StorageKind::ConfigMap;
    fn object(mut self) -> Object {
        let text = std::mem::take(&mut self.data).into_iter().flatten().map(|(k, v)| (k, v.into_bytes()));
        let binary = std::mem::take(&mut self.binary_data).into_iter().flatten().map(|(k, v)| (k, v.0));
        let data = text.chain(binary).collect();
        object_of(&mut self, data)
    }
}

impl Holds for Secret {
    const HELD: StorageKind = StorageKind::Secret;
    fn object(mut self) -> Object {
        let data = std::mem::take(&mut self.data).into_iter().flatten().map(|(k, v)| (k, v.0)).collect();
        object_of(&mut self, data)
    }
}

fn object_of<K: Holds>(of: &mut K, data: BTreeMap<String, Vec<u8>>) -> Object {
    Object {
        kind: K::HELD,
        namespace: of.namespace().unwrap_or_default(),
        name: of.name_any(),
        labels: std::mem::take(of.labels_mut()),
        data,
    }
}

fn sorted(error: ApiError, kind: StorageKind) -> ReadError {
    match error {
        ApiError::Forbidden { what, message } => ReadError::Rights { what, message, kind: kind.resource() },
        error => ReadError::Api(error),
    }
}
