//! Writes a result: shards, then the manifest. The manifest's presence with the Job's uid is the commit.
//!
//! Every write is a create, or a replace by resourceVersion of an object that has been seen to be ours. Run again after
//! a stop at any point, it finds what is there: the manifest is adopted, shards are written over with the same names.
//!
//! A name belongs to one run of a Job, in whichever kind of object: an older run's result moves aside for a newer one's
//! also where the two are held in different kinds.

use job_handler_shared::{
    keys,
    kube::error::{ApiError, call},
    names,
    result::{
        manifest::{KEY, Manifest},
        metadata::{self, OUTBOX, PENDING, SHARD},
        storage_kind::StorageKind,
    },
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Client, ResourceExt, api::DeleteParams};
use serde_json::{Value, json};

use crate::result::{packed::Packed, storage::ResultStorage, writer};

/// A result that is stored.
#[derive(Clone, Debug)]
pub struct Committed {
    /// What holds it.
    pub kind: StorageKind,
    /// Name of that.
    pub name: String,
    /// Its resourceVersion.
    pub version: String,
    /// What it says.
    pub manifest: Manifest,
    /// It was written just now, not found.
    pub fresh: bool,
}

/// Why a result is not stored.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A call failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Both names that the result could have belong to objects that are not ours.
    #[error(
        "the result of {job} cannot be stored: {kind}s {first} and {second} exist and are not job-handler's; \
         rename or delete one of them"
    )]
    NamesTaken {
        /// What it was to be stored in.
        kind: &'static str,
        /// `namespace/name` of the Job.
        job: String,
        /// The result's own name.
        first: String,
        /// The name beside it.
        second: String,
    },
    /// Lost every race.
    #[error("the result of {0} was written by others {ROUNDS} times while we wrote it")]
    Races(String),
    /// The manifest cannot be written as JSON.
    #[error("the manifest of {0} is no JSON: {1}")]
    Json(String, serde_json::Error),
}

/// What is under a result's name.
enum Found {
    Nothing,
    /// This Job's manifest.
    Own(Box<Committed>),
    /// The manifest of another Job of the same name; whether that one is newer.
    Namesake(Box<ConfigMap>, Box<Manifest>),
    Foreign,
}

/// Finds a Job's stored result; in Secrets, too, where those may be read.
///
/// # Errors
/// Where a call fails.
pub async fn find(
    client: &Client,
    namespace: &str,
    job: &str,
    uid: &str,
    secrets: bool,
) -> Result<Option<Committed>, ApiError> {
    let mut taken = false;
    for name in [names::result_name(job), names::result_name_with_uid(job, uid)] {
        for kind in StorageKind::readable(secrets) {
            match look(client, *kind, namespace, &name, uid).await? {
                Found::Own(committed) => return Ok(Some(*committed)),
                Found::Nothing => {}
                Found::Namesake(..) | Found::Foreign => taken = true,
            }
        }
        // Beside it, it is only where something else has its name. Between two kinds an older one moves before the newer
        // one is there (see below), and is beside nothing for a moment.
        if !taken && !secrets {
            break;
        }
    }
    Ok(None)
}

/// The same result again, after it was changed; it may have moved, within its kind.
///
/// # Errors
/// Where a call fails.
pub async fn again(client: &Client, before: &Committed) -> Result<Option<Committed>, ApiError> {
    let job = &before.manifest.job;
    let beside = names::result_name_with_uid(&job.name, &job.uid);
    for name in [before.name.as_str(), names::result_name(&job.name).as_str(), beside.as_str()] {
        let found = read_at(client, before.kind, &job.namespace, name, &job.uid).await?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The result of the Job with this uid under a name, where it is one.
///
/// # Errors
/// Where the call fails.
pub async fn read_at(
    client: &Client,
    kind: StorageKind,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<Option<Committed>, ApiError> {
    Ok(match look(client, kind, namespace, name, uid).await? {
        Found::Own(committed) => Some(*committed),
        _ => None,
    })
}

async fn look(
    client: &Client,
    kind: StorageKind,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<Found, ApiError> {
    let storage = ResultStorage::namespaced(client, kind, namespace);
    let found = call(&format!("get {} {namespace}/{name}", kind.resource()), storage.get_opt(name)).await?;
    Ok(found.map_or(Found::Nothing, |map| read(kind, map, uid)))
}

fn read(kind: StorageKind, map: ConfigMap, uid: &str) -> Found {
    let ours = map.labels().get(keys::CREATED).is_some_and(|value| value == "true");
    let text = map.data.as_ref().and_then(|data| data.get(KEY));
    match text.and_then(|text| serde_json::from_str::<Manifest>(text).ok()).filter(|_| ours) {
        Some(manifest) if manifest.job.uid == uid => Found::Own(Box::new(Committed {
            kind,
            name: map.name_any(),
            version: map.resource_version().unwrap_or_default(),
            manifest,
            fresh: false,
        })),
        Some(manifest) => Found::Namesake(Box::new(map), Box::new(manifest)),
        None => Found::Foreign,
    }
}

/// Stores a result in what it is to be held in, or adopts the one that is stored; `secrets`: those may be read. A write
/// that is refused for what it is (quota, size, admission) is tried once more without the logs, where these could be
/// the reason: a quota counts objects, so that a result in one object is as much without them, and would only lose them
/// where room comes between the two tries.
///
/// # Errors
/// Where it is not stored.
pub async fn commit(client: &Client, mut packed: Packed, secrets: bool) -> Result<Committed, CommitError> {
    let mut degraded = false;
    let mut rounds = 0;
    loop {
        rounds += 1;
        if rounds > ROUNDS {
            return Err(CommitError::Races(packed.manifest.job.name));
        }
        match attempt(client, &mut packed, secrets).await {
            Err(CommitError::Api(error)) if error.is_conflict() => {}
            Err(CommitError::Api(error)) if is_degrading(&error, &packed) && !degraded => {
                let job = &packed.manifest.job;
                tracing::warn!(namespace = job.namespace, job = job.name, "storing without logs: {error}");
                degraded = true;
                let orphans = std::mem::take(&mut packed.shards);
                drop_shards(client, packed.kind, &orphans).await;
                packed.drop_logs(&error.to_string());
            }
            other => return other,
        }
    }
}

/// Whether a result that was refused could be let in without its logs.
fn is_degrading(error: &ApiError, packed: &Packed) -> bool {
    error.is_rejected() && !error.is_terminating() && !(error.is_over_quota() && packed.shards.is_empty())
}

async fn attempt(client: &Client, packed: &mut Packed, secrets: bool) -> Result<Committed, CommitError> {
    let (job, wanted) = (packed.manifest.job.clone(), packed.kind);
    let first = names::result_name(&job.name);
    let beside = names::result_name_with_uid(&job.name, &job.uid);
    let (mut name, mut version) = (&first, None);
    let mut older = Vec::new();
    for kind in StorageKind::readable(secrets) {
        match look(client, *kind, &job.namespace, &first, &job.uid).await? {
            Found::Own(committed) => return Ok(*committed),
            Found::Nothing => {}
            Found::Namesake(map, manifest) if manifest.job.created <= job.created => {
                older.push((*kind, map, manifest));
            }
            Found::Namesake(..) => name = &beside,
            // Of the other kind, it is in nobody's way.
            Found::Foreign if *kind != wanted => {}
            Found::Foreign => {
                name = &beside;
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
            move_aside(client, kind, *map, &manifest).await?;
            if kind == wanted {
                // Its place is written over, so that at no moment it is nowhere.
                version = known;
            } else {
                remove_moved(client, kind, &job.namespace, &first, known).await?;
            }
        }
    } else {
        for kind in StorageKind::readable(secrets) {
            match look(client, *kind, &job.namespace, &beside, &job.uid).await? {
                Found::Own(committed) => return Ok(*committed),
                Found::Namesake(..) | Found::Foreign if *kind == wanted => {
                    let job = format!("{}/{}", job.namespace, job.name);
                    return Err(CommitError::NamesTaken { kind: wanted.kind(), job, first, second: beside });
                }
                _ => {}
            }
        }
    }
    for shard in &packed.shards {
        put_shard(client, wanted, shard, &job.uid).await?;
    }
    let map = packed.map(name, version.as_deref()).map_err(|e| CommitError::Json(job.name.clone(), e))?;
    let storage = ResultStorage::namespaced(client, wanted, &job.namespace);
    let what = format!("write result {}/{name}", job.namespace);
    let written = if version.is_some() {
        call(&what, storage.replace(name, &map)).await?
    } else {
        call(&what, storage.create(&map)).await?
    };
    Ok(Committed {
        kind: wanted,
        name: name.clone(),
        version: written.resource_version.unwrap_or_default(),
        manifest: packed.manifest.clone(),
        fresh: true,
    })
}

/// Copies the result of an older Job of the same name to `<job>-results-<uid8>`.
async fn move_aside(
    client: &Client,
    kind: StorageKind,
    older: ConfigMap,
    manifest: &Manifest,
) -> Result<(), CommitError> {
    let job = &manifest.job;
    let (namespace, uid) = (job.namespace.as_str(), job.uid.as_str());
    let (first, name) = (older.name_any(), names::result_name_with_uid(&job.name, uid));
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
        Err(error) if error.is_already_exists() => match look(client, kind, namespace, &name, uid).await? {
            Found::Own(_) => Ok(()),
            _ => {
                let job = format!("{namespace}/{}", job.name);
                Err(CommitError::NamesTaken { kind: kind.kind(), job, first, second: name })
            }
        },
        other => Ok(other.map(drop)?),
    }
}

/// Takes the older one, of which there is a copy now, from under the name that a newer one of the other kind is to have.
async fn remove_moved(
    client: &Client,
    kind: StorageKind,
    namespace: &str,
    name: &str,
    version: Option<String>,
) -> Result<(), CommitError> {
    let guard = kube::api::Preconditions { uid: None, resource_version: version };
    let params = DeleteParams::background().preconditions(guard);
    let what = format!("remove {} {namespace}/{name}, which has moved", kind.resource());
    match call(&what, ResultStorage::namespaced(client, kind, namespace).delete(name, &params)).await {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a shard; one that is there already is ours by its labels, or foreign and left alone.
async fn put_shard(
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
        // Gone between the two calls: from the start again.
        let gone =
            ApiError::Refused { what, code: 409, reason: String::new(), message: "it has just gone".into() };
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

/// Removes the shards of a result that does without; what stays behind does no harm.
async fn drop_shards(client: &Client, kind: StorageKind, shards: &[ConfigMap]) {
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
            tracing::debug!(%namespace, %name, "shard stays: {error}");
        }
    }
}

/// Races with other writers of the manifest are looked at again this often.
pub(crate) const ROUNDS: usize = 5;

/// Changes a stored manifest, by its version; `change` tells whether there was anything to change.
///
/// # Errors
/// Where it could not be written.
pub async fn amend(
    client: &Client,
    committed: &Committed,
    change: impl Fn(&mut Manifest) -> bool,
) -> Result<(), ApiError> {
    let job = &committed.manifest.job;
    let storage = ResultStorage::namespaced(client, committed.kind, &job.namespace);
    let mut current = committed.clone();
    for _ in 0..ROUNDS {
        let mut manifest = current.manifest.clone();
        if !change(&mut manifest) {
            return Ok(());
        }
        let (metadata, text) = noted(&mut manifest, &current.version);
        let what = format!("note what was told in {}/{}", job.namespace, current.name);
        match call(&what, storage.merge(&current.name, &metadata, KEY, text)).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_conflict() || error.is_not_found() => {
                match writer::again(client, &current).await? {
                    Some(found) => current = found,
                    None => return Ok(()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    let what = format!("note what was told in {}/{}", job.namespace, current.name);
    Err(ApiError::Refused { what, code: 409, reason: String::new(), message: "it keeps changing".into() })
}

/// The manifest's text, and the metadata that go with it; they hold only for this version.
pub(crate) fn noted(manifest: &mut Manifest, version: &str) -> (Value, String) {
    // A manifest that was read can be written; an empty text would only be refused by the apiserver's guard below.
    let text = manifest.to_json().unwrap_or_default();
    let pending = (!manifest.announcements_pending.is_empty()).then_some("pending");
    let metadata = json!({
        "resourceVersion": version,
        "labels": {PENDING: pending},
        "annotations": {OUTBOX: metadata::format_outbox(&manifest.cloud_events_pending)},
    });
    (metadata, text)
}
