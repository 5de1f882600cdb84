//! What a result is held in: a ConfigMap, or a Secret with the same keys.
//!
//! Everything else in this program knows a result as a ConfigMap; here, at the call, it becomes a Secret where it is one.
//! Both bear the same name and metadata. A Secret's values are bytes without a word on which of them are text: those
//! that are, are given back as text.

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

/// The objects of one kind, of a namespace or of all.
#[derive(Clone)]
pub struct ResultStorage {
    kind: StorageKind,
    maps: Api<ConfigMap>,
    secrets: Api<Secret>,
}

/// Sends the same call to either kind.
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
    /// Those of a namespace.
    pub fn namespaced(client: &Client, kind: StorageKind, namespace: &str) -> Self {
        Self {
            kind,
            maps: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client.clone(), namespace),
        }
    }

    /// Those of all namespaces: only to be listed.
    pub fn all(client: &Client, kind: StorageKind) -> Self {
        Self { kind, maps: Api::all(client.clone()), secrets: Api::all(client.clone()) }
    }

    /// One, where it is there.
    ///
    /// # Errors
    /// Where the call fails, as all of the following.
    pub async fn get_opt(&self, name: &str) -> kube::Result<Option<ConfigMap>> {
        match self.kind {
            StorageKind::ConfigMap => self.maps.get_opt(name).await,
            StorageKind::Secret => Ok(self.secrets.get_opt(name).await?.map(of_secret)),
        }
    }

    /// Its metadata.
    ///
    /// # Errors
    /// As above.
    pub async fn metadata_opt(&self, name: &str) -> kube::Result<Option<ObjectMeta>> {
        either!(self, api => Ok(api.get_metadata_opt(name).await?.map(|found| found.metadata)))
    }

    /// A page of their metadata.
    ///
    /// # Errors
    /// As above.
    pub async fn list_metadata(
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

    /// Makes one; gives its metadata.
    ///
    /// # Errors
    /// As above.
    pub async fn create(&self, map: &ConfigMap) -> kube::Result<ObjectMeta> {
        let params = PostParams::default();
        match self.kind {
            StorageKind::ConfigMap => Ok(self.maps.create(&params, map).await?.metadata),
            StorageKind::Secret => Ok(self.secrets.create(&params, &to_secret(map)).await?.metadata),
        }
    }

    /// Writes over one of the version that the new one names.
    ///
    /// # Errors
    /// As above.
    pub async fn replace(&self, name: &str, map: &ConfigMap) -> kube::Result<ObjectMeta> {
        let params = PostParams::default();
        match self.kind {
            StorageKind::ConfigMap => Ok(self.maps.replace(name, &params, map).await?.metadata),
            StorageKind::Secret => Ok(self.secrets.replace(name, &params, &to_secret(map)).await?.metadata),
        }
    }

    /// Merges metadata, and one text of the data.
    ///
    /// # Errors
    /// As above.
    pub async fn merge(&self, name: &str, metadata: &Value, key: &str, text: String) -> kube::Result<()> {
        let value = match self.kind {
            StorageKind::ConfigMap => json!(text),
            StorageKind::Secret => json!(ByteString(text.into_bytes())),
        };
        let patch = Patch::Merge(json!({"metadata": metadata, "data": {key: value}}));
        // The answer without the data: it is known.
        either!(self, api => api.patch_metadata(name, &PatchParams::default(), &patch).await.map(drop))
    }

    /// Deletes one.
    ///
    /// # Errors
    /// As above.
    pub async fn delete(&self, name: &str, params: &DeleteParams) -> kube::Result<()> {
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
    // One of another type is none of ours, and shows as one without data.
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
    fn a_secret_holds_what_the_config_map_would() {
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
        assert_eq!(of_secret(foreign).data, None, "one of another type is not ours");
    }
}
