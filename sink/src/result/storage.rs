//! Stores results as ConfigMaps, or as Secrets with the same keys.
//!
//! The rest of the program handles every result as a ConfigMap; calls convert it here. Name and metadata are the same. A
//! Secret does not say which of its values are text: reading returns values in UTF-8 as text.

use std::collections::BTreeMap;

use job_handler_shared::result::storage_kind::{SECRET_TYPE, StorageKind};
use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::{ObjectList, ObjectMeta, PartialObjectMeta},
};
use serde_json::{Value, json};

use crate::model::served_namespaces::NamespaceScope;

/// Objects of one kind, in one namespace or in all.
#[derive(Clone)]
pub(crate) struct ResultStorage {
    kind: StorageKind,
    maps: Api<ConfigMap>,
    secrets: Api<Secret>,
}

/// Makes the same call for either kind.
macro_rules! either {
    ($storage:ident, $api:ident => $call:expr) => {
        match $storage.kind {
            StorageKind::ConfigMap => {
                let $api = &$storage.maps;
                $call
            }
            StorageKind::Secret => {
                let $api = &$storage.secrets;
                $call
            }
        }
    };
}

impl ResultStorage {
    pub(crate) fn namespaced(client: &Client, kind: StorageKind, namespace: &str) -> Self {
        Self {
            kind,
            maps: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client.clone(), namespace),
        }
    }

    /// In the namespaces of a scope: only for lists.
    pub(crate) fn of_scope(client: &Client, kind: StorageKind, scope: &NamespaceScope) -> Self {
        Self { kind, maps: scope.api(client.clone()), secrets: scope.api(client.clone()) }
    }

    pub(crate) async fn get_opt(&self, name: &str) -> kube::Result<Option<ConfigMap>> {
        match self.kind {
            StorageKind::ConfigMap => self.maps.get_opt(name).await,
            StorageKind::Secret => Ok(self.secrets.get_opt(name).await?.map(of_secret)),
        }
    }

    pub(crate) async fn metadata_opt(&self, name: &str) -> kube::Result<Option<ObjectMeta>> {
        either!(self, api => Ok(api.get_metadata_opt(name).await?.map(|found| found.metadata)))
    }

    /// A page of metadata, and the token of the next page.
    pub(crate) async fn list_metadata(
        &self,
        params: &ListParams,
    ) -> kube::Result<(Vec<ObjectMeta>, Option<String>)> {
        fn page<K>(list: ObjectList<PartialObjectMeta<K>>) -> (Vec<ObjectMeta>, Option<String>)
        where
            PartialObjectMeta<K>: Clone,
        {
            let next = list.metadata.continue_.filter(|token| !token.is_empty());
            (list.items.into_iter().map(|item| item.metadata).collect(), next)
        }
        either!(self, api => Ok(page(api.list_metadata(params).await?)))
    }

    pub(crate) async fn create(&self, map: &ConfigMap) -> kube::Result<ObjectMeta> {
        let params = PostParams::default();
        match self.kind {
            StorageKind::ConfigMap => Ok(self.maps.create(&params, map).await?.metadata),
            StorageKind::Secret => Ok(self.secrets.create(&params, &to_secret(map)).await?.metadata),
        }
    }

    /// Replaces the version that `map` names.
    pub(crate) async fn replace(&self, name: &str, map: &ConfigMap) -> kube::Result<ObjectMeta> {
        let params = PostParams::default();
        match self.kind {
            StorageKind::ConfigMap => Ok(self.maps.replace(name, &params, map).await?.metadata),
            StorageKind::Secret => Ok(self.secrets.replace(name, &params, &to_secret(map)).await?.metadata),
        }
    }

    /// Patches metadata and one value.
    pub(crate) async fn merge(
        &self,
        name: &str,
        metadata: &Value,
        key: &str,
        text: String,
    ) -> kube::Result<()> {
        let value = match self.kind {
            StorageKind::ConfigMap => json!(text),
            StorageKind::Secret => json!(ByteString(text.into_bytes())),
        };
        let patch = Patch::Merge(json!({"metadata": metadata, "data": {key: value}}));
        // Requests only metadata in the response: the data are known.
        either!(self, api => api.patch_metadata(name, &PatchParams::default(), &patch).await.map(drop))
    }

    pub(crate) async fn delete(&self, name: &str, params: &DeleteParams) -> kube::Result<()> {
        either!(self, api => api.delete(name, params).await.map(drop))
    }
}

fn to_secret(map: &ConfigMap) -> Secret {
    let text =
        map.data.iter().flatten().map(|(key, text)| (key.clone(), ByteString(text.clone().into_bytes())));
    let binary = map.binary_data.iter().flatten().map(|(key, bytes)| (key.clone(), bytes.clone()));
    Secret {
        metadata: map.metadata.clone(),
        type_: Some(SECRET_TYPE.to_owned()),
        data: Some(text.chain(binary).collect()),
        ..Secret::default()
    }
}

fn of_secret(secret: Secret) -> ConfigMap {
    let mut map = ConfigMap { metadata: secret.metadata, ..ConfigMap::default() };
    // A Secret of another type is not a result: it is read as one without data.
    if secret.type_.as_deref() == Some(SECRET_TYPE) {
        let (mut data, mut binary) = (BTreeMap::new(), BTreeMap::new());
        for (key, bytes) in secret.data.into_iter().flatten() {
            match String::from_utf8(bytes.0) {
                Ok(text) => drop(data.insert(key, text)),
                Err(error) => drop(binary.insert(key, ByteString(error.into_bytes()))),
            }
        }
        map.data = Some(data);
        map.binary_data = Some(binary).filter(|binary| !binary.is_empty());
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_the_same_content_as_the_config_map() {
        let map: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": "a-results", "namespace": "ci", "labels": {"a": "b"}, "resourceVersion": "7"},
            "data": {"status": "failed", "logs": "ä\n\u{0}"},
            "binaryData": {"logs.gz": "H4sI/w=="},
        }))
        .unwrap();
        let secret = to_secret(&map);
        assert_eq!(secret.type_.as_deref(), Some(SECRET_TYPE));
        assert_eq!(secret.data.as_ref().unwrap()["logs.gz"].0, [0x1f, 0x8b, 8, 0xff]);
        assert_eq!(of_secret(secret.clone()), map);
        let foreign = Secret { type_: Some("Opaque".to_owned()), ..secret };
        assert_eq!(of_secret(foreign).data, None, "a Secret of another type is not a result");
    }
}
