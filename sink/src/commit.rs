//! Writes a result: shards, then the manifest. The manifest's presence with the Job's uid is the commit.
//!
//! Every write is a create, or a replace by resourceVersion of an object that has been seen to be ours. Run again after
//! a stop at any point, it finds what is there: the manifest is adopted, shards are written over with the same names.

use job_handler_shared::{keys, names};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
};

use crate::{
    api::{ApiError, call},
    manifest::{KEY, Manifest, SHARD},
    result::Packed,
};

/// Races are looked at again this often; each lost one means that somebody else made progress.
const ROUNDS: usize = 5;

/// A result that is stored.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Name of its ConfigMap.
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
        "the result of {job} cannot be stored: ConfigMaps {first} and {second} exist and are not job-handler's; \
         rename or delete one of them"
    )]
    NamesTaken {
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

/// Finds a Job's stored result; `known` is where the watch has seen it.
///
/// # Errors
/// Where a call fails.
pub async fn find(
    client: &Client,
    namespace: &str,
    job: &str,
    uid: &str,
    known: Option<&str>,
) -> Result<Option<Committed>, ApiError> {
    let first = names::result_name(job);
    let beside = names::result_name_of(job, uid);
    let mut places: Vec<&str> = known.into_iter().collect();
    places.extend([first.as_str(), beside.as_str()].into_iter().filter(|name| Some(*name) != known));
    for name in places {
        match look(client, namespace, name, uid).await? {
            Found::Own(committed) => return Ok(Some(*committed)),
            // Beside it, it is only where something else has its name.
            Found::Nothing if name == first => return Ok(None),
            _ => {}
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
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<Option<Committed>, ApiError> {
    Ok(match look(client, namespace, name, uid).await? {
        Found::Own(committed) => Some(*committed),
        _ => None,
    })
}

async fn look(client: &Client, namespace: &str, name: &str, uid: &str) -> Result<Found, ApiError> {
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let found = call(&format!("get configmap {namespace}/{name}"), api.get_opt(name)).await?;
    Ok(found.map_or(Found::Nothing, |map| read(map, uid)))
}

fn read(map: ConfigMap, uid: &str) -> Found {
    let ours = map.labels().get(keys::CREATED).is_some_and(|value| value == "true");
    let text = map.data.as_ref().and_then(|data| data.get(KEY));
    match text.and_then(|text| serde_json::from_str::<Manifest>(text).ok()).filter(|_| ours) {
        Some(manifest) if manifest.job.uid == uid => Found::Own(Box::new(Committed {
            name: map.name_any(),
            version: map.resource_version().unwrap_or_default(),
            manifest,
            fresh: false,
        })),
        Some(manifest) => Found::Namesake(Box::new(map), Box::new(manifest)),
        None => Found::Foreign,
    }
}

/// Stores a result, or adopts the one that is stored. A write that is refused for what it is (quota, size, admission)
/// is tried once more without the logs.
///
/// # Errors
/// Where it is not stored.
pub async fn commit(client: &Client, mut packed: Packed) -> Result<Committed, CommitError> {
    let mut degraded = false;
    let mut rounds = 0;
    loop {
        rounds += 1;
        if rounds > ROUNDS {
            return Err(CommitError::Races(packed.manifest.job.name));
        }
        match attempt(client, &mut packed).await {
            Err(CommitError::Api(error)) if error.is_conflict() => {}
            Err(CommitError::Api(error)) if error.is_unwanted() && !error.is_terminating() && !degraded => {
                let job = &packed.manifest.job;
                tracing::warn!(namespace = job.namespace, job = job.name, "storing without logs: {error}");
                degraded = true;
                let orphans = std::mem::take(&mut packed.shards);
                drop_shards(client, &orphans).await;
                packed.drop_logs(&error.to_string());
            }
            other => return other,
        }
    }
}

async fn attempt(client: &Client, packed: &mut Packed) -> Result<Committed, CommitError> {
    let job = packed.manifest.job.clone();
    let first = names::result_name(&job.name);
    let beside = names::result_name_of(&job.name, &job.uid);
    let (name, version) = match look(client, &job.namespace, &first, &job.uid).await? {
        Found::Own(committed) => return Ok(*committed),
        Found::Nothing => (first, None),
        Found::Namesake(map, manifest) if manifest.job.created <= job.created => {
            let version = map.resource_version();
            move_aside(client, *map, &manifest).await?;
            (first, version)
        }
        found => {
            if matches!(found, Found::Foreign) {
                let taken = keys::REASON_NAME_TAKEN.to_owned();
                if !packed.manifest.announcements_pending.contains(&taken) {
                    packed.manifest.announcements_pending.push(taken);
                }
            }
            match look(client, &job.namespace, &beside, &job.uid).await? {
                Found::Own(committed) => return Ok(*committed),
                Found::Nothing => (beside, None),
                Found::Namesake(..) | Found::Foreign => {
                    let job = format!("{}/{}", job.namespace, job.name);
                    return Err(CommitError::NamesTaken { job, first, second: beside });
                }
            }
        }
    };
    for shard in &packed.shards {
        put_shard(client, shard, &job.uid).await?;
    }
    let map = packed.map(&name, version.as_deref()).map_err(|e| CommitError::Json(job.name.clone(), e))?;
    let api = Api::<ConfigMap>::namespaced(client.clone(), &job.namespace);
    let (what, params) = (format!("write result {}/{name}", job.namespace), PostParams::default());
    let written = if version.is_some() {
        call(&what, api.replace(&name, &params, &map)).await?
    } else {
        call(&what, api.create(&params, &map)).await?
    };
    Ok(Committed {
        name,
        version: written.resource_version().unwrap_or_default(),
        manifest: packed.manifest.clone(),
        fresh: true,
    })
}

/// Copies the result of an older Job of the same name to `<job>-results-<uid8>`; its place is then written over, by
/// resourceVersion, so that at no moment it is nowhere.
async fn move_aside(client: &Client, older: ConfigMap, manifest: &Manifest) -> Result<(), CommitError> {
    let job = &manifest.job;
    let (namespace, uid) = (job.namespace.as_str(), job.uid.as_str());
    let (first, name) = (older.name_any(), names::result_name_of(&job.name, uid));
    let mut copy = older;
    copy.metadata = kube::core::ObjectMeta {
        name: Some(name.clone()),
        namespace: Some(namespace.to_owned()),
        labels: copy.metadata.labels,
        annotations: copy.metadata.annotations,
        ..kube::core::ObjectMeta::default()
    };
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let what = format!("move the older result to {namespace}/{name}");
    match call(&what, api.create(&PostParams::default(), &copy)).await {
        Err(error) if error.is_there_already() => match look(client, namespace, &name, uid).await? {
            Found::Own(_) => Ok(()),
            _ => {
                let job = format!("{namespace}/{}", job.name);
                Err(CommitError::NamesTaken { job, first, second: name })
            }
        },
        other => Ok(other.map(drop)?),
    }
}

/// Writes a shard; one that is there already is ours by its labels, or foreign and left alone.
async fn put_shard(client: &Client, shard: &ConfigMap, uid: &str) -> Result<(), CommitError> {
    let (namespace, name) = (shard.namespace().unwrap_or_default(), shard.name_any());
    let api = Api::<ConfigMap>::namespaced(client.clone(), &namespace);
    let what = format!("write shard {namespace}/{name}");
    match call(&what, api.create(&PostParams::default(), shard)).await {
        Err(error) if error.is_there_already() => {}
        other => return Ok(other.map(drop)?),
    }
    let Some(there) = call(&what, api.get_opt(&name)).await? else {
        // Gone between the two calls: from the start again.
        let gone =
            ApiError::Refused { what, code: 409, reason: String::new(), message: "it has just gone".into() };
        return Err(gone.into());
    };
    let labels = there.labels();
    if !labels.contains_key(SHARD) || labels.get(keys::JOB_UID).is_none_or(|known| known != uid) {
        let job = format!("{namespace} (uid {uid})");
        return Err(CommitError::NamesTaken { job, first: name.clone(), second: name });
    }
    let mut shard = shard.clone();
    shard.metadata.resource_version = there.resource_version();
    Ok(call(&what, api.replace(&name, &PostParams::default(), &shard)).await.map(drop)?)
}

/// Removes the shards of a result that does without; what stays behind does no harm.
async fn drop_shards(client: &Client, shards: &[ConfigMap]) {
    for shard in shards {
        let (namespace, name) = (shard.namespace().unwrap_or_default(), shard.name_any());
        let api = Api::<ConfigMap>::namespaced(client.clone(), &namespace);
        let what = format!("get shard {namespace}/{name}");
        let own = |map: &ConfigMap| map.labels().get(keys::JOB_UID) == shard.labels().get(keys::JOB_UID);
        let Ok(Some(there)) = call(&what, api.get_metadata_opt(&name)).await else { continue };
        let there = ConfigMap { metadata: there.metadata, ..ConfigMap::default() };
        if !own(&there) {
            continue;
        }
        let params = DeleteParams::background().preconditions(kube::api::Preconditions {
            uid: there.uid(),
            resource_version: there.resource_version(),
        });
        if let Err(error) = call("delete a shard", api.delete(&name, &params)).await {
            tracing::debug!(%namespace, %name, "shard stays: {error}");
        }
    }
}
