//! Removes what retention says, and shards that no result names: the leader's broom.
//!
//! A result is read before it goes, and goes only as the version that was read: the manifest first, its shards after
//! it, so that a stop between the two leaves shards without a result (which the next sweep finds), never a result
//! without its shards. Where the Job is still there, it is told first that its result has been retired; else it would
//! be harvested again.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use futures::StreamExt;
use jiff::Timestamp;
use job_handler_shared::{
    keys,
    kube::error::{ApiError, call},
    policy::reference::PolicyKind,
    result::{
        metadata::{SHARD, requesting_policy},
        storage_kind::StorageKind,
    },
};
use kube::{
    Client,
    api::{DeleteParams, ListParams, Preconditions},
    core::ObjectMeta,
};

use crate::{
    jobs::{
        marks,
        patch::{self, Written},
    },
    metrics::SinkMetrics,
    model::{result_ref::ResultRef, stored_result::StoredResult},
    object_store::FullLogStore,
    observe::store::Store,
    result::{storage::ResultStorage, writer},
    retention::plan::{self as retention_plan, Bounds, Why},
};

/// Pause between two looks at all results.
const EVERY: Duration = Duration::from_secs(10);
/// Each so many of them, shards are looked at.
const SHARDS_EACH: u32 = 6;
/// Deletions at a time.
const AT_A_TIME: usize = 8;
/// Most results that go in one sweep: the rest a moment later, so that a sweep is no burst.
const PER_SWEEP: usize = 500;

/// What the broom needs.
#[derive(Clone)]
pub struct GarbageCollector {
    /// Talks to the cluster.
    pub client: Client,
    /// What is known.
    pub store: Store,
    /// Counts.
    pub metrics: SinkMetrics,
    /// Most bytes of results in the whole cluster; nothing = no bound.
    pub max_bytes: Option<u64>,
    /// Where whole logs are.
    pub objects: Option<FullLogStore>,
}

impl GarbageCollector {
    /// Sweeps for ever.
    pub async fn keep(self) {
        let mut suspects = BTreeSet::new();
        for round in 0u32.. {
            self.sweep(Timestamp::now()).await;
            if round.is_multiple_of(SHARDS_EACH) {
                match self.sweep_shards(&suspects).await {
                    Ok(now) => suspects = now,
                    Err(error) => tracing::warn!("looking for shards without a result: {error}"),
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Removes what has to go by now; gives how many did.
    pub async fn sweep(&self, now: Timestamp) -> usize {
        let all = self.store.inventory().all();
        let rules = Rules::of(&self.store);
        let going = retention_plan::plan(&all, |stored| rules.of_result(stored), self.max_bytes, now);
        let removals = going.into_iter().take(PER_SWEEP).map(|(n, why)| {
            let stored = &all[n];
            async move {
                match self.remove(stored).await {
                    Ok(true) => {
                        self.metrics.result_removed(why.as_str());
                        tell(stored, why);
                        1
                    }
                    Ok(false) => 0,
                    Err(error) if error.is_conflict() || error.is_terminating() => 0,
                    Err(error) => {
                        self.metrics.action_failed("remove result");
                        tracing::warn!(
                            namespace = stored.namespace,
                            result = stored.name,
                            "{error}; it stays for now"
                        );
                        0
                    }
                }
            }
        });
        futures::stream::iter(removals).buffer_unordered(AT_A_TIME).fold(0, async |sum, n| sum + n).await
    }

    async fn remove(&self, stored: &StoredResult) -> Result<bool, ApiError> {
        let StoredResult { kind, namespace, name, uid, .. } = stored;
        // Those that may not be read any more are beyond us.
        if *kind == StorageKind::Secret && !self.store.secrets.is_allowed() {
            return Ok(false);
        }
        let Some(found) = writer::read_at(&self.client, *kind, namespace, name, uid).await? else {
            // Gone, or edited so that it is no result any more: then it is somebody's own.
            self.store.inventory().remove(*kind, namespace, name);
            return Ok(false);
        };
        let places = self.store.places_of(uid);
        let here = ResultRef::at(*kind, namespace, name);
        let only = places.iter().all(|place| place.is_at(&here));
        if let Some(job) = self.store.job(uid).filter(|job| only && !marks::is_result_removed(job)) {
            // Its own sequence comes first: without the mark, the note below would not hold.
            if !marks::names_its_result(&job) {
                return Ok(false);
            }
            match patch::mark_result_removed(&self.client, &job).await? {
                // Known at once: the watch of results must not be the first to tell.
                Written::Done(now) => _ = self.store.put_job(*now),
                Written::Changed => return Ok(false),
                Written::Gone => {}
            }
        }
        let storage = ResultStorage::namespaced(&self.client, *kind, namespace);
        let what = format!("remove result {namespace}/{name}");
        let guard = Preconditions { uid: None, resource_version: Some(found.version) };
        let params = DeleteParams::background().preconditions(guard);
        match call(&what, storage.delete(name, &params)).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        self.store.inventory().remove(*kind, namespace, name);
        self.store.remove_results(|job, place| job == uid && place.is_at(&here));
        for shard in found.manifest.logs.iter().flat_map(|place| &place.shards) {
            let there = call("get a shard", storage.metadata_opt(&shard.name)).await?;
            if let Some(there) = there.filter(|there| is_shard_of(there, uid)) {
                self.remove_shard(*kind, namespace, &there).await?;
            }
        }
        if found.manifest.objects.is_some() {
            self.remove_objects(namespace, uid).await;
        }
        Ok(true)
    }

    /// What stays behind here is found by the object store's own broom.
    async fn remove_objects(&self, namespace: &str, uid: &str) {
        if self.store.inventory().objects(uid).is_some() {
            // The same result, beside its first place.
            return;
        }
        let removed = match &self.objects {
            Some(objects) => objects.remove(namespace, uid).await.map(drop),
            None => Err("no object store is configured any more".to_owned()),
        };
        if let Err(why) = removed {
            self.metrics.action_failed("remove objects");
            tracing::warn!(namespace, job_uid = uid, "whole logs of a removed result stay for now: {why}");
        }
    }

    /// Removes shards that were without a result the last time, too; gives those that are without one now.
    ///
    /// # Errors
    /// Where they cannot be listed.
    pub async fn sweep_shards(&self, suspects: &BTreeSet<String>) -> Result<BTreeSet<String>, ApiError> {
        let mut now = BTreeSet::new();
        for kind in StorageKind::readable(self.store.secrets.is_allowed()) {
            self.sweep_shards_of(*kind, suspects, &mut now).await?;
        }
        Ok(now)
    }

    async fn sweep_shards_of(
        &self,
        kind: StorageKind,
        suspects: &BTreeSet<String>,
        now: &mut BTreeSet<String>,
    ) -> Result<(), ApiError> {
        let storage = ResultStorage::all(&self.client, kind);
        let mut params = ListParams::default().labels(SHARD).limit(500);
        let named = self.store.inventory().shards();
        loop {
            let (page, next) = call("list shards", storage.list_metadata(&params)).await?;
            for shard in page {
                if !self.is_orphan(&shard, &named) {
                    continue;
                }
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                let identity = format!("{} {}", text(&shard.uid), text(&shard.resource_version));
                if !suspects.contains(&identity) {
                    now.insert(identity);
                    continue;
                }
                let (namespace, name) = (text(&shard.namespace), text(&shard.name));
                match self.remove_shard(kind, &namespace, &shard).await {
                    Ok(()) => tracing::info!(namespace, shard = name, "removed: no result names it"),
                    Err(error) => tracing::warn!(namespace, shard = name, "{error}; it stays for now"),
                }
            }
            match next {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(()),
            }
        }
    }

    /// A shard of a Job that is not being harvested, beyond those that its result names.
    fn is_orphan(&self, shard: &ObjectMeta, named: &HashMap<String, usize>) -> bool {
        let Some(labels) = &shard.labels else { return false };
        let Some(uid) = labels.get(keys::JOB_UID) else { return false };
        let Some(n) = labels.get(SHARD).and_then(|n| n.parse::<usize>().ok()) else { return false };
        match named.get(uid) {
            Some(named) => n >= *named,
            None => {
                let awaited = self.store.job(uid).is_some_and(|job| !marks::is_result_removed(&job));
                !awaited && self.store.deleted_job(uid).is_none()
            }
        }
    }

    async fn remove_shard(
        &self,
        kind: StorageKind,
        namespace: &str,
        shard: &ObjectMeta,
    ) -> Result<(), ApiError> {
        let name = shard.name.as_deref().unwrap_or_default();
        let guard =
            Preconditions { uid: shard.uid.clone(), resource_version: shard.resource_version.clone() };
        let storage = ResultStorage::namespaced(&self.client, kind, namespace);
        let what = format!("remove shard {namespace}/{name}");
        match call(&what, storage.delete(name, &DeleteParams::background().preconditions(guard))).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn is_shard_of(shard: &ObjectMeta, uid: &str) -> bool {
    let labels = shard.labels.as_ref();
    labels.is_some_and(|l| l.contains_key(SHARD) && l.get(keys::JOB_UID).is_some_and(|known| known == uid))
}

fn tell(stored: &StoredResult, why: Why) {
    tracing::info!(namespace = stored.namespace, result = stored.name, why = why.as_str(), "result removed");
}

/// The bounds that the policies of now say, by who asked for the result.
struct Rules(Option<HashMap<String, Bounds>>);

impl Rules {
    fn of(store: &Store) -> Self {
        // A policy that cannot be read may be the one that keeps a result.
        if store.is_any_policy_unreadable() {
            return Self(None);
        }
        let mut rules = HashMap::new();
        for entry in store.policy_entries() {
            let Ok(policy) = entry.policy else { continue };
            // A policy that only warns deletes nothing.
            let Some(results) = policy.spec.results.as_ref().filter(|_| policy.enforced()) else { continue };
            let reference = &entry.reference;
            let scope = match reference.kind {
                PolicyKind::JobPolicy => reference.namespace.as_deref().unwrap_or_default(),
                PolicyKind::ClusterJobPolicy => "",
            };
            rules.insert(
                key(scope, &requesting_policy(reference.kind, &reference.name)),
                Bounds::from(results),
            );
        }
        Self(Some(rules))
    }

    fn of_result(&self, stored: &StoredResult) -> Option<Bounds> {
        let rules = self.0.as_ref()?;
        let asked = stored.facts.policies.iter();
        let found =
            asked.filter_map(|by| rules.get(&key(&stored.namespace, by)).or_else(|| rules.get(&key("", by))));
        found.copied().reduce(Bounds::or)
    }
}

fn key(namespace: &str, requesting_policy: &str) -> String {
    format!("{namespace} {requesting_policy}")
}
