//! Writes a result: shards, then the manifest, whose presence with the Job's uid is the commit.
//!
//! Every write is a create, or a replace by resourceVersion of an object known to be a result. A repeated write finds what
//! exists: it adopts a manifest with the sink's seal and overwrites the shards. What looks like a result of this Job and has
//! no seal is left alone, as any object of others.
//!
//! A name belongs to one run of a Job, across both kinds of objects: an older run's result moves to another name for a newer
//! one's, also if the two are of different kinds.

use job_handler_shared::{
    keys,
    kube::error::{ApiError, call},
    names,
    result::{manifest::Manifest, storage_kind::StorageKind},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Client, ResourceExt, api::DeleteParams};

use crate::result::{
    lookup::{CommittedResult, NameOwner, read_name},
    manifest_update::ATTEMPTS,
    packed::Packed,
    seal::Seal,
    shards::{drop_shards, put_shard},
    storage::ResultStorage,
};

/// Why a result is not stored.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A call failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Objects that job-handler did not create have both names of the result.
    #[error(
        "the result of {job} cannot be stored: {kind}s {first} and {second} exist and are not job-handler's; \
         rename or delete one of them"
    )]
    NamesTaken {
        kind: &'static str,
        /// `namespace/name` of the Job.
        job: String,
        first: String,
        second: String,
    },
    /// Every attempt met a conflicting write.
    #[error("the result of {0} was changed by others during each of {ATTEMPTS} attempts to write it")]
    Conflicts(String),
    /// The manifest cannot be serialized.
    #[error("cannot serialize the manifest of {0}: {1}")]
    Json(String, serde_json::Error),
}

/// Stores a result, or returns the one that is stored already; `secrets`: those may be read.
///
/// A write that is rejected because of quota, size or admission is repeated once without the logs, if these may be the
/// reason. A quota counts objects: a result in one object needs as many without its logs, and would only lose them.
pub(crate) async fn commit(
    client: &Client,
    seal: &Seal,
    mut packed: Packed,
    secrets: bool,
) -> Result<CommittedResult, CommitError> {
    let mut without_logs = false;
    let mut attempts = 0;
    loop {
        attempts += 1;
        if attempts > ATTEMPTS {
            return Err(CommitError::Conflicts(packed.manifest.job.name));
        }
        match attempt(client, seal, &mut packed, secrets).await {
            Err(CommitError::Api(error)) if error.is_conflict() => {}
            Err(CommitError::Api(error)) if may_fit_without_logs(&error, &packed) && !without_logs => {
                let job = &packed.manifest.job;
                tracing::warn!(
                    namespace = job.namespace,
                    job = job.name,
                    "storing the result without logs: {error}"
                );
                without_logs = true;
                let orphans = std::mem::take(&mut packed.shards);
                drop_shards(client, packed.kind, &orphans).await;
                packed.drop_logs(&error.to_string());
            }
            other => return other,
        }
    }
}

fn may_fit_without_logs(error: &ApiError, packed: &Packed) -> bool {
    error.is_rejected() && !error.is_terminating() && !(error.is_over_quota() && packed.shards.is_empty())
}

async fn attempt(
    client: &Client,
    seal: &Seal,
    packed: &mut Packed,
    secrets: bool,
) -> Result<CommittedResult, CommitError> {
    let (job, wanted) = (packed.manifest.job.clone(), packed.kind);
    let first = names::result_name(&job.name);
    let with_uid = names::result_name_with_uid(&job.name, &job.uid);
    let (mut name, mut version) = (&first, None);
    let mut older = Vec::new();
    for kind in StorageKind::readable(secrets) {
        match read_name(client, seal, *kind, &job.namespace, &first, &job.uid).await? {
            NameOwner::ThisJob(committed) if committed.sealed => return Ok(*committed),
            NameOwner::None => {}
            NameOwner::OtherJob(map, manifest) if manifest.job.created <= job.created => {
                older.push((*kind, map, manifest));
            }
            NameOwner::OtherJob(..) => name = &with_uid,
            // An object of the other kind does not prevent the write.
            NameOwner::ThisJob(_) | NameOwner::Foreign if *kind != wanted => {}
            NameOwner::ThisJob(_) | NameOwner::Foreign => {
                name = &with_uid;
                let taken = keys::REASON_NAME_TAKEN.to_owned();
                if !packed.manifest.announcements_pending.contains(&taken) {
                    packed.manifest.announcements_pending.push(taken);
                }
            }
        }
    }
    if name == &first {
        for (kind, map, manifest) in older {
            let known = map.resource_version();
            move_to_uid_name(client, seal, kind, *map, &manifest).await?;
            if kind == wanted {
                // It is overwritten, so that the older result exists at every moment.
                version = known;
            } else {
                delete_moved(client, kind, &job.namespace, &first, known).await?;
            }
        }
    } else {
        for kind in StorageKind::readable(secrets) {
            match read_name(client, seal, *kind, &job.namespace, &with_uid, &job.uid).await? {
                NameOwner::ThisJob(committed) if committed.sealed => return Ok(*committed),
                NameOwner::ThisJob(_) | NameOwner::OtherJob(..) | NameOwner::Foreign if *kind == wanted => {
                    let job = format!("{}/{}", job.namespace, job.name);
                    return Err(CommitError::NamesTaken {
                        kind: wanted.kind(),
                        job,
                        first,
                        second: with_uid,
                    });
                }
                _ => {}
            }
        }
    }
    for shard in &packed.shards {
        put_shard(client, wanted, shard, &job.uid).await?;
    }
    let map = packed.map(name, version.as_deref());
    let mut map = map.map_err(|e| CommitError::Json(job.name.clone(), e))?;
    seal.put(&mut map.metadata);
    let storage = ResultStorage::namespaced(client, wanted, &job.namespace);
    let what = format!("write result {}/{name}", job.namespace);
    let written = if version.is_some() {
        call(&what, storage.replace(name, &map)).await?
    } else {
        call(&what, storage.create(&map)).await?
    };
    Ok(CommittedResult {
        kind: wanted,
        name: name.clone(),
        version: written.resource_version.unwrap_or_default(),
        manifest: packed.manifest.clone(),
        fresh: true,
        sealed: true,
    })
}

/// Copies the result of an older Job of the same name to `<job>-results-<uid8>`.
async fn move_to_uid_name(
    client: &Client,
    seal: &Seal,
    kind: StorageKind,
    older: ConfigMap,
    manifest: &Manifest,
) -> Result<(), CommitError> {
    let job = &manifest.job;
    let (namespace, uid) = (job.namespace.as_str(), job.uid.as_str());
    let (first, name) = (older.name_any(), names::result_name_with_uid(&job.name, uid));
    let sealed = seal.holds(&older.metadata);
    let mut copy = older;
    copy.metadata = kube::core::ObjectMeta {
        name: Some(name.clone()),
        namespace: Some(namespace.to_owned()),
        labels: copy.metadata.labels,
        annotations: copy.metadata.annotations,
        ..kube::core::ObjectMeta::default()
    };
    let storage = ResultStorage::namespaced(client, kind, namespace);
    let what = format!("move the older result to {namespace}/{name}");
    match call(&what, storage.create(&copy)).await {
        Err(error) if error.is_already_exists() => {
            match read_name(client, seal, kind, namespace, &name, uid).await? {
                // A forged copy must not cost the result.
                NameOwner::ThisJob(copy) if copy.sealed || !sealed => Ok(()),
                _ => {
                    let job = format!("{namespace}/{}", job.name);
                    Err(CommitError::NamesTaken { kind: kind.kind(), job, first, second: name })
                }
            }
        }
        other => Ok(other.map(drop)?),
    }
}

/// Deletes an older result after it was copied, to free its name for a newer one of the other kind.
async fn delete_moved(
    client: &Client,
    kind: StorageKind,
    namespace: &str,
    name: &str,
    version: Option<String>,
) -> Result<(), CommitError> {
    let guard = kube::api::Preconditions { uid: None, resource_version: version };
    let params = DeleteParams::background().preconditions(guard);
    let what = format!("delete {} {namespace}/{name} after copying it", kind.resource());
    match call(&what, ResultStorage::namespaced(client, kind, namespace).delete(name, &params)).await {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
