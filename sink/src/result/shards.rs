//! Writes and deletes shards.

use job_handler_shared::{
    keys,
    kube::error::{ApiError, call},
    result::{metadata::SHARD, storage_kind::StorageKind},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Client, ResourceExt, api::DeleteParams};

use crate::result::{storage::ResultStorage, writer::CommitError};

/// Writes a shard. Overwrites a shard of the same Job, but no other object.
pub(super) async fn put_shard(
    client: &Client,
    kind: StorageKind,
    shard: &ConfigMap,
    uid: &str,
) -> Result<(), CommitError> {
    let (namespace, name) = (shard.namespace().unwrap_or_default(), shard.name_any());
    let storage = ResultStorage::namespaced(client, kind, &namespace);
    let what = format!("write shard {namespace}/{name}");
    match call(&what, storage.create(shard)).await {
        Err(error) if error.is_already_exists() => {}
        other => return Ok(other.map(drop)?),
    }
    let Some(there) = call(&what, storage.metadata_opt(&name)).await? else {
        // It was deleted between the two calls: a conflict, so that the caller starts again.
        let gone = ApiError::Refused {
            what,
            code: 409,
            reason: String::new(),
            message: "it was deleted meanwhile".into(),
        };
        return Err(gone.into());
    };
    let labels = there.labels.unwrap_or_default();
    if !labels.contains_key(SHARD) || labels.get(keys::JOB_UID).is_none_or(|known| known != uid) {
        let job = format!("{namespace} (uid {uid})");
        return Err(CommitError::NamesTaken { kind: kind.kind(), job, first: name.clone(), second: name });
    }
    let mut shard = shard.clone();
    shard.metadata.resource_version = there.resource_version;
    Ok(call(&what, storage.replace(&name, &shard)).await.map(drop)?)
}

/// Deletes the shards of a result that is stored without logs. The garbage collector deletes what remains.
pub(super) async fn drop_shards(client: &Client, kind: StorageKind, shards: &[ConfigMap]) {
    for shard in shards {
        let (namespace, name) = (shard.namespace().unwrap_or_default(), shard.name_any());
        let storage = ResultStorage::namespaced(client, kind, &namespace);
        let what = format!("get shard {namespace}/{name}");
        let Ok(Some(there)) = call(&what, storage.metadata_opt(&name)).await else { continue };
        let uid = |labels: Option<&std::collections::BTreeMap<String, String>>| {
            labels.and_then(|labels| labels.get(keys::JOB_UID).cloned())
        };
        if uid(there.labels.as_ref()) != uid(shard.metadata.labels.as_ref()) {
            continue;
        }
        let guard = kube::api::Preconditions { uid: there.uid, resource_version: there.resource_version };
        let params = DeleteParams::background().preconditions(guard);
        if let Err(error) = call("delete a shard", storage.delete(&name, &params)).await {
            tracing::debug!(%namespace, %name, "shard remains: {error}");
        }
    }
}
