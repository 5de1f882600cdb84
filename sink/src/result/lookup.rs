//! Finds stored results.
//!
//! [`manifest_of`] is the only reader of manifests in this program, and so decides where the effects of a result may land.

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

use crate::result::{seal::Seal, storage::ResultStorage};

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
    /// The sink wrote it. Otherwise it may be anybody's.
    pub(crate) sealed: bool,
}

/// The owner of a result's name.
pub(super) enum NameOwner {
    None,
    /// It claims to be this Job's result. The caller checks the seal.
    ThisJob(Box<CommittedResult>),
    /// Another Job of the same name.
    OtherJob(Box<ConfigMap>, Box<Manifest>),
    /// An object that job-handler did not create.
    Foreign,
}

/// Finds the sealed result of a Job, also in Secrets if they may be read.
pub(crate) async fn find(
    client: &Client,
    seal: &Seal,
    namespace: &str,
    job: &str,
    uid: &str,
    secrets: bool,
) -> Result<Option<CommittedResult>, ApiError> {
    let mut is_taken = false;
    for name in [names::result_name(job), names::result_name_with_uid(job, uid)] {
        for kind in StorageKind::readable(secrets) {
            match read_name(client, seal, *kind, namespace, &name, uid).await? {
                NameOwner::ThisJob(committed) if committed.sealed => return Ok(Some(*committed)),
                NameOwner::None => {}
                NameOwner::ThisJob(_) | NameOwner::OtherJob(..) | NameOwner::Foreign => is_taken = true,
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

/// Reads a sealed result again; it may have moved to another name of the same kind.
pub(crate) async fn reload(
    client: &Client,
    seal: &Seal,
    before: &CommittedResult,
) -> Result<Option<CommittedResult>, ApiError> {
    let job = &before.manifest.job;
    let with_uid = names::result_name_with_uid(&job.name, &job.uid);
    for name in [before.name.as_str(), names::result_name(&job.name).as_str(), with_uid.as_str()] {
        let found = read_sealed(client, seal, before.kind, &job.namespace, name, &job.uid).await?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The object with this name, if it is the sealed result of the Job with this uid.
pub(crate) async fn read_sealed(
    client: &Client,
    seal: &Seal,
    kind: StorageKind,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<Option<CommittedResult>, ApiError> {
    Ok(read_at(client, seal, kind, namespace, name, uid).await?.filter(|found| found.sealed))
}

/// The object with this name, if it claims to be the result of the Job with this uid. Without a seal it may be anybody's.
pub(crate) async fn read_at(
    client: &Client,
    seal: &Seal,
    kind: StorageKind,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<Option<CommittedResult>, ApiError> {
    Ok(match read_name(client, seal, kind, namespace, name, uid).await? {
        NameOwner::ThisJob(committed) => Some(*committed),
        _ => None,
    })
}

pub(super) async fn read_name(
    client: &Client,
    seal: &Seal,
    kind: StorageKind,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<NameOwner, ApiError> {
    let storage = ResultStorage::namespaced(client, kind, namespace);
    let found = call(&format!("get {} {namespace}/{name}", kind.resource()), storage.get_opt(name)).await?;
    Ok(found.map_or(NameOwner::None, |map| name_owner(seal, kind, map, uid)))
}

fn name_owner(seal: &Seal, kind: StorageKind, map: ConfigMap, uid: &str) -> NameOwner {
    match manifest_of(&map) {
        Some(manifest) if manifest.job.uid == uid => NameOwner::ThisJob(Box::new(CommittedResult {
            kind,
            name: map.name_any(),
            version: map.resource_version().unwrap_or_default(),
            manifest,
            fresh: false,
            sealed: seal.holds(&map.metadata),
        })),
        Some(manifest) => NameOwner::OtherJob(Box::new(map), Box::new(manifest)),
        None => NameOwner::Foreign,
    }
}

/// The manifest in an object with the label of results. Whatever follows from it (writes, Events, CloudEvents, deletions)
/// lands where the object's metadata say: in its namespace ([`Manifest::parse`]), and under names of a Job that its name and
/// its label stand for.
fn manifest_of(map: &ConfigMap) -> Option<Manifest> {
    let labels = map.labels();
    labels.get(keys::CREATED).filter(|value| *value == "true")?;
    let text = map.data.as_ref()?.get(KEY)?;
    let manifest = Manifest::parse(&map.namespace()?, text.as_bytes()).ok()?;
    let (job, name) = (&manifest.job, map.name_any());
    let names = [names::result_name(&job.name), names::result_name_with_uid(&job.name, &job.uid)];
    let matches = names.contains(&name) && labels.get(keys::JOB_UID) == Some(&job.uid);
    matches.then_some(manifest)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn seal() -> Seal {
        let seal = Seal::default();
        seal.set_key(&[1; 32]);
        seal
    }

    fn manifest() -> Value {
        json!({"schemaVersion": 1, "outcome": "completed", "pods": [], "completeness": {"complete": true},
            "job": {"namespace": "ci", "name": "a", "uid": "u", "created": "2026-01-01T00:00:00Z",
                "finished": "2026-01-01T00:01:00Z", "succeededPods": 1, "failedPods": 0}})
    }

    fn map(created: &str, text: &str) -> ConfigMap {
        let mut map: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": "a-results", "namespace": "ci", "resourceVersion": "7",
                "labels": {"job-handler/created": created, "job-handler/job-uid": "u"}},
            "data": {KEY: text},
        }))
        .unwrap();
        seal().put(&mut map.metadata);
        map
    }

    fn owner(map: ConfigMap, uid: &str) -> NameOwner {
        name_owner(&seal(), StorageKind::ConfigMap, map, uid)
    }

    #[test]
    fn the_owner_of_a_name_is_identified_by_label_and_uid() {
        let text = manifest().to_string();
        let NameOwner::ThisJob(found) = owner(map("true", &text), "u") else { panic!("not found") };
        assert_eq!((found.name.as_str(), found.version.as_str(), found.fresh), ("a-results", "7", false));
        assert!(found.sealed);
        assert!(matches!(owner(map("true", &text), "other"), NameOwner::OtherJob(..)));
        assert!(matches!(owner(map("false", &text), "u"), NameOwner::Foreign));
        assert!(matches!(owner(map("true", "{"), "u"), NameOwner::Foreign));
    }

    #[test]
    fn a_result_without_a_valid_seal_is_not_known_to_be_ours() {
        let mut forged = map("true", &manifest().to_string());
        forged.metadata.annotations = Some([("job-handler/seal".to_owned(), "00".repeat(32))].into());
        let NameOwner::ThisJob(found) = owner(forged, "u") else { panic!("not found") };
        assert!(!found.sealed);
    }

    #[test]
    fn effects_follow_from_the_metadata_of_the_object() {
        let mut elsewhere = manifest();
        elsewhere["job"]["namespace"] = "kube-system".into();
        let NameOwner::ThisJob(found) = owner(map("true", &elsewhere.to_string()), "u") else {
            panic!("not found")
        };
        assert_eq!(found.manifest.job.namespace, "ci");
        for (field, value) in [("name", "b"), ("uid", "v")] {
            let mut of_another = manifest();
            of_another["job"][field] = value.into();
            let owner = owner(map("true", &of_another.to_string()), "u");
            assert!(matches!(owner, NameOwner::Foreign), "{field}");
        }
    }
}
