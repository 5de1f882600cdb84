//! Finds stored results.

use job_handler_shared::{
    keys,
    kube::error::{ApiError, call},
    names,
    result::{
        manifest::{KEY, Manifest},
        storage_kind::StorageKind,
    },
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Client, ResourceExt};

use crate::result::storage::ResultStorage;

/// A stored result.
#[derive(Clone, Debug)]
pub(crate) struct CommittedResult {
    /// Kind of its objects.
    pub(crate) kind: StorageKind,
    /// Name of the object with the manifest.
    pub(crate) name: String,
    /// Its resourceVersion.
    pub(crate) version: String,
    pub(crate) manifest: Manifest,
    /// It was written just now rather than found.
    pub(crate) fresh: bool,
}

/// The owner of a result's name.
pub(super) enum NameOwner {
    None,
    ThisJob(Box<CommittedResult>),
    /// Another Job of the same name.
    OtherJob(Box<ConfigMap>, Box<Manifest>),
    /// An object that job-handler did not create.
    Foreign,
}

/// Finds a Job's stored result, also in Secrets if they may be read.
pub(crate) async fn find(
    client: &Client,
    namespace: &str,
    job: &str,
    uid: &str,
    secrets: bool,
) -> Result<Option<CommittedResult>, ApiError> {
    let mut is_taken = false;
    for name in [names::result_name(job), names::result_name_with_uid(job, uid)] {
        for kind in StorageKind::readable(secrets) {
            match read_name(client, *kind, namespace, &name, uid).await? {
                NameOwner::ThisJob(committed) => return Ok(Some(*committed)),
                NameOwner::None => {}
                NameOwner::OtherJob(..) | NameOwner::Foreign => is_taken = true,
            }
        }
        // It has the name with the uid only if another object has the plain name. With two kinds, an older result moves
        // before the newer one is written, so that the plain name is free for a moment.
        if !is_taken && !secrets {
            break;
        }
    }
    Ok(None)
}

/// Reads a result again; it may have moved to another name of the same kind.
pub(crate) async fn reload(
    client: &Client,
    before: &CommittedResult,
) -> Result<Option<CommittedResult>, ApiError> {
    let job = &before.manifest.job;
    let with_uid = names::result_name_with_uid(&job.name, &job.uid);
    for name in [before.name.as_str(), names::result_name(&job.name).as_str(), with_uid.as_str()] {
        let found = read_at(client, before.kind, &job.namespace, name, &job.uid).await?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The object with this name, if it is the result of the Job with this uid.
pub(crate) async fn read_at(
    client: &Client,
    kind: StorageKind,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<Option<CommittedResult>, ApiError> {
    Ok(match read_name(client, kind, namespace, name, uid).await? {
        NameOwner::ThisJob(committed) => Some(*committed),
        _ => None,
    })
}

pub(super) async fn read_name(
    client: &Client,
    kind: StorageKind,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<NameOwner, ApiError> {
    let storage = ResultStorage::namespaced(client, kind, namespace);
    let found = call(&format!("get {} {namespace}/{name}", kind.resource()), storage.get_opt(name)).await?;
    Ok(found.map_or(NameOwner::None, |map| name_owner(kind, map, uid)))
}

fn name_owner(kind: StorageKind, map: ConfigMap, uid: &str) -> NameOwner {
    let ours = map.labels().get(keys::CREATED).is_some_and(|value| value == "true");
    let text = map.data.as_ref().and_then(|data| data.get(KEY));
    match text.and_then(|text| serde_json::from_str::<Manifest>(text).ok()).filter(|_| ours) {
        Some(manifest) if manifest.job.uid == uid => NameOwner::ThisJob(Box::new(CommittedResult {
            kind,
            name: map.name_any(),
            version: map.resource_version().unwrap_or_default(),
            manifest,
            fresh: false,
        })),
        Some(manifest) => NameOwner::OtherJob(Box::new(map), Box::new(manifest)),
        None => NameOwner::Foreign,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_owner_of_a_name_is_identified_by_label_and_uid() {
        let map = |created: &str, text: &str| -> ConfigMap {
            serde_json::from_value(json!({"metadata": {"name": "a-results", "resourceVersion": "7",
                "labels": {"job-handler/created": created}}, "data": {KEY: text}}))
            .unwrap()
        };
        let text = json!({"schemaVersion": 1, "outcome": "completed", "pods": [], "completeness": {"complete": true},
            "job": {"namespace": "ci", "name": "a", "uid": "u", "created": "2026-01-01T00:00:00Z",
                "finished": "2026-01-01T00:01:00Z", "succeededPods": 1, "failedPods": 0}})
        .to_string();
        let owner = |map, uid| name_owner(StorageKind::ConfigMap, map, uid);
        let NameOwner::ThisJob(found) = owner(map("true", &text), "u") else { panic!("not found") };
        assert_eq!((found.name.as_str(), found.version.as_str(), found.fresh), ("a-results", "7", false));
        assert!(matches!(owner(map("true", &text), "other"), NameOwner::OtherJob(..)));
        assert!(matches!(owner(map("false", &text), "u"), NameOwner::Foreign));
        assert!(matches!(owner(map("true", "{"), "u"), NameOwner::Foreign));
    }
}
