//! Results as they are stored: a ConfigMap or a Secret with the same keys, and shards of the same kind.

use std::collections::{BTreeMap, HashSet};

use job_handler_shared::{
    keys,
    kube::error::{ApiError, call},
    result::{
        manifest::{KEY, Manifest, SCHEMA_VERSION},
        storage_kind::StorageKind,
    },
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use crate::error::PluginError;

/// Objects per list call. Small, because each may have up to 1 MiB.
const PAGE: u32 = 50;
/// Restarts of a list whose continue token expired.
const MAX_RELISTS: usize = 3;

/// Where results are read from.
#[derive(Clone)]
pub struct ResultSource {
    pub(crate) client: Client,
    /// None = all namespaces.
    pub(crate) namespace: Option<String>,
    kind: Option<StorageKind>,
}

/// A ConfigMap or Secret that holds a result, or a shard of one.
#[derive(Clone, Debug)]
pub(crate) struct StorageObject {
    pub(crate) kind: StorageKind,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// `data` and `binaryData`.
    pub(crate) data: BTreeMap<String, Vec<u8>>,
}

/// A result whose manifest has been parsed.
#[derive(Clone, Debug)]
pub(crate) struct JobResult {
    pub(crate) object: StorageObject,
    pub(crate) manifest: Manifest,
    /// Bytes in the cluster, shards included.
    pub(crate) size: u64,
}

impl JobResult {
    /// # Errors
    /// If the object has no manifest, or one that cannot be parsed.
    pub(crate) fn parse(object: StorageObject) -> Result<Self, PluginError> {
        let place = object.display_name();
        let Some(text) = object.data.get(KEY) else {
            return Err(PluginError::Unreadable(format!(
                "{place} has the labels of a result, but no key `{KEY}`"
            )));
        };
        let manifest = Manifest::parse(&object.namespace, text).map_err(|error| {
            PluginError::Unreadable(format!(
                "the `{KEY}` of {place} cannot be read: {error}. Was it edited by hand, or written by a newer \
                 job-handler than {}? `kubectl get {} -n {} {} -o yaml` prints the object",
                env!("CARGO_PKG_VERSION"),
                object.kind.resource(),
                object.namespace,
                object.name
            ))
        })?;
        let own: usize = object.data.values().map(Vec::len).sum();
        let shards = manifest.logs.iter().flat_map(|logs| &logs.shards);
        // Whoever may edit the object can state any size.
        let size = shards.fold(own, |sum, shard| sum.saturating_add(shard.bytes));
        Ok(Self { size: size as u64, object, manifest })
    }

    /// The manifest, and where it is stored.
    pub(crate) fn to_value(&self) -> Value {
        let mut value = serde_json::to_value(&self.manifest).unwrap_or_default();
        value["storedIn"] = json!({
            "kind": self.object.kind.kind(),
            "namespace": self.object.namespace,
            "name": self.object.name,
            "bytes": self.size,
        });
        value
    }

    /// A newer job-handler wrote it, so it may have fields that this version does not know.
    pub(crate) fn has_newer_schema(&self) -> bool {
        self.manifest.schema_version > SCHEMA_VERSION
    }
}

impl StorageObject {
    /// Kind, namespace and name, for messages.
    pub(crate) fn display_name(&self) -> String {
        format!("{} {}/{}", self.kind.kind(), self.namespace, self.name)
    }

    pub(crate) fn is_result(&self) -> bool {
        is_result(&self.labels)
    }
}

impl ResultSource {
    /// Reads results in `namespace` (none = all) from objects of `kind`. Without a kind it reads both, and skips Secrets
    /// where RBAC does not allow reading them.
    pub fn new(client: Client, namespace: Option<String>, kind: Option<StorageKind>) -> Self {
        Self { client, namespace, kind }
    }

    pub(crate) fn kinds(&self) -> Vec<StorageKind> {
        self.kind.map_or_else(|| StorageKind::readable(true).to_vec(), |kind| vec![kind])
    }

    /// Results are in ConfigMaps by default, so most users have no rights on Secrets and need none.
    pub(crate) fn may_skip(&self, kind: StorageKind) -> bool {
        kind == StorageKind::Secret && self.kind.is_none()
    }

    /// Calls `visit` for each result that matches the label selector, page by page. Returns the kinds that were skipped
    /// for lack of rights, with the message of the apiserver.
    ///
    /// # Errors
    /// If a call fails.
    pub(crate) async fn for_each_result(
        &self,
        selector: &str,
        visit: &mut impl FnMut(StorageObject),
    ) -> Result<Vec<(StorageKind, String)>, PluginError> {
        let selector = match selector {
            "" => format!("{}=true", keys::CREATED),
            more => format!("{}=true,{more}", keys::CREATED),
        };
        let mut skipped = Vec::new();
        for kind in self.kinds() {
            let listed = match kind {
                StorageKind::ConfigMap => self.list::<ConfigMap>(&selector, visit).await,
                StorageKind::Secret => self.list::<Secret>(&selector, visit).await,
            };
            match listed {
                Err(PluginError::Forbidden { message, .. }) if self.may_skip(kind) => {
                    skipped.push((kind, message));
                }
                other => other?,
            }
        }
        Ok(skipped)
    }

    /// # Errors
    /// If the call fails; an object that does not exist is `None`.
    pub(crate) async fn get(
        &self,
        kind: StorageKind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<StorageObject>, PluginError> {
        match kind {
            StorageKind::ConfigMap => self.get_as::<ConfigMap>(namespace, name).await,
            StorageKind::Secret => self.get_as::<Secret>(namespace, name).await,
        }
    }

    async fn get_as<K: StorageResource>(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<StorageObject>, PluginError> {
        let api = Api::<K>::namespaced(self.client.clone(), namespace);
        let what = format!("get {} {namespace}/{name}", K::KIND.resource());
        let object = call(&what, api.get_opt(name)).await.map_err(|error| plugin_error(error, K::KIND))?;
        Ok(object.map(StorageResource::into_storage_object))
    }

    async fn list<K: StorageResource>(
        &self,
        selector: &str,
        visit: &mut impl FnMut(StorageObject),
    ) -> Result<(), PluginError> {
        let api = match &self.namespace {
            Some(namespace) => Api::<K>::namespaced(self.client.clone(), namespace),
            None => Api::<K>::all(self.client.clone()),
        };
        let scope =
            self.namespace.as_deref().map_or("all namespaces".to_owned(), |n| format!("namespace {n}"));
        let what = format!("list {}s in {scope}", K::KIND.resource());
        let first_page = ListParams::default().labels(selector).limit(PAGE);
        let (mut params, mut relists, mut seen) = (first_page.clone(), 0, HashSet::new());
        loop {
            match call(&what, api.list(&params)).await {
                Ok(page) => {
                    for item in page.items {
                        // A restarted list returns objects again.
                        if is_result(item.labels()) && seen.insert(item.uid().unwrap_or_default()) {
                            visit(item.into_storage_object());
                        }
                    }
                    match page.metadata.continue_.filter(|token| !token.is_empty()) {
                        Some(token) => params = params.continue_token(&token),
                        None => return Ok(()),
                    }
                }
                Err(error) if error.is_expired() && relists < MAX_RELISTS => {
                    relists += 1;
                    params = first_page.clone();
                }
                Err(error) => return Err(plugin_error(error, K::KIND)),
            }
        }
    }
}

/// ConfigMap or Secret.
trait StorageResource:
    kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
    + Clone
    + std::fmt::Debug
    + serde::de::DeserializeOwned
{
    const KIND: StorageKind;
    fn into_storage_object(self) -> StorageObject;
}

impl StorageResource for ConfigMap {
    const KIND: StorageKind = StorageKind::ConfigMap;
    fn into_storage_object(mut self) -> StorageObject {
        let text = std::mem::take(&mut self.data).into_iter().flatten().map(|(k, v)| (k, v.into_bytes()));
        let binary = std::mem::take(&mut self.binary_data).into_iter().flatten().map(|(k, v)| (k, v.0));
        let data = text.chain(binary).collect();
        storage_object(&mut self, data)
    }
}

impl StorageResource for Secret {
    const KIND: StorageKind = StorageKind::Secret;
    fn into_storage_object(mut self) -> StorageObject {
        let data = std::mem::take(&mut self.data).into_iter().flatten().map(|(k, v)| (k, v.0)).collect();
        storage_object(&mut self, data)
    }
}

fn storage_object<K: StorageResource>(resource: &mut K, data: BTreeMap<String, Vec<u8>>) -> StorageObject {
    StorageObject {
        kind: K::KIND,
        namespace: resource.namespace().unwrap_or_default(),
        name: resource.name_any(),
        labels: std::mem::take(resource.labels_mut()),
        data,
    }
}

fn is_result(labels: &BTreeMap<String, String>) -> bool {
    labels.get(keys::CREATED).is_some_and(|value| value == "true")
}

fn plugin_error(error: ApiError, kind: StorageKind) -> PluginError {
    match error {
        ApiError::Forbidden { what, message } => {
            PluginError::Forbidden { what, message, kind: kind.resource() }
        }
        error => PluginError::Api(error),
    }
}
