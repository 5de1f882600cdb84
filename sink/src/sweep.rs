//! Removes what retention says, and shards that no result names: the leader's broom.
//!
//! A result is read before it goes, and goes only as the version that was read: the manifest first, its shards after
//! it, so that a stop between the two leaves shards without a result (which the next sweep finds), never a result
//! without its shards. Where the Job is still there, it is told first that its result has been retired; else it would
//! be harvested again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use jiff::Timestamp;
use job_handler_shared::{combine::PolicyKind, keys};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Preconditions},
    core::{ObjectMeta, PartialObjectMeta},
};

use crate::{
    api::{ApiError, call},
    commit,
    manifest::SHARD,
    mark::{self, Written},
    metrics::SinkMetrics,
    outbox::OUTBOX,
    plan,
    retention::{self, Bounds, Stored, Why, asker},
    store::Store,
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
pub struct Broom {
    /// Talks to the cluster.
    pub client: Client,
    /// What is known.
    pub store: Store,
    /// Counts.
    pub metrics: SinkMetrics,
    /// Most bytes of results in the whole cluster; nothing = no bound.
    pub max_bytes: Option<u64>,
}

impl Broom {
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
        let going = retention::plan(&all, |stored| rules.of_result(stored), self.max_bytes, now);
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
                        self.metrics.fault("remove result");
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

    async fn remove(&self, stored: &Stored) -> Result<bool, ApiError> {
        let Stored { namespace, name, uid, .. } = stored;
        let Some(found) = commit::read_at(&self.client, namespace, name, uid).await? else {
            // Gone, or edited so that it is no result any more: then it is somebody's own.
            self.store.inventory().drop(namespace, name);
            return Ok(false);
        };
        let places = self.store.places_of(uid);
        let only = places.iter().all(|place| (&place.namespace, &place.name) == (namespace, name));
        if let Some(job) = self.store.job(uid).filter(|job| only && !plan::is_retired(job)) {
            // Its own sequence comes first: without the mark, the note below would not hold.
            if !plan::is_told_where(&job) {
                return Ok(false);
            }
            match mark::retire(&self.client, &job).await? {
                // Known at once: the watch of results must not be the first to tell.
                Written::Done(now) => _ = self.store.put_job(*now),
                Written::Changed => return Ok(false),
                Written::Gone => {}
            }
        }
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let what = format!("remove result {namespace}/{name}");
        let guard = Preconditions { uid: None, resource_version: Some(found.version) };
        let params = DeleteParams::background().preconditions(guard);
        match call(&what, api.delete(name, &params)).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        self.store.inventory().drop(namespace, name);
        self.store
            .drop_results(|job, place| job == uid && (&place.namespace, &place.name) == (namespace, name));
        for shard in found.manifest.logs.iter().flat_map(|place| &place.shards) {
            let there = call("get a shard", api.get_metadata_opt(&shard.name)).await?;
            if let Some(there) = there.filter(|there| is_shard_of(&there.metadata, uid)) {
                self.remove_shard(namespace, &there.metadata).await?;
            }
        }
        Ok(true)
    }

    /// Removes shards that were without a result the last time, too; gives those that are without one now.
    ///
    /// # Errors
    /// Where they cannot be listed.
    pub async fn sweep_shards(&self, suspects: &BTreeSet<String>) -> Result<BTreeSet<String>, ApiError> {
        let api = Api::<ConfigMap>::all(self.client.clone());
        let mut params = ListParams::default().labels(SHARD).limit(500);
        let mut now = BTreeSet::new();
        let named = self.store.inventory().shards();
        loop {
            let page = call("list shards", api.list_metadata(&params)).await?;
            for shard in page.items {
                if !self.is_orphan(&shard, &named) {
                    continue;
                }
                let identity = format!(
                    "{} {}",
                    shard.uid().unwrap_or_default(),
                    shard.resource_version().unwrap_or_default()
                );
                if !suspects.contains(&identity) {
                    now.insert(identity);
                    continue;
                }
                let namespace = shard.namespace().unwrap_or_default();
                match self.remove_shard(&namespace, &shard.metadata).await {
                    Ok(()) => {
                        tracing::info!(namespace, shard = shard.name_any(), "removed: no result names it");
                    }
                    Err(error) => {
                        tracing::warn!(namespace, shard = shard.name_any(), "{error}; it stays for now");
                    }
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(now),
            }
        }
    }

    /// A shard of a Job that is not being harvested, beyond those that its result names.
    fn is_orphan(&self, shard: &PartialObjectMeta<ConfigMap>, named: &HashMap<String, usize>) -> bool {
        let Some(uid) = shard.labels().get(keys::JOB_UID) else { return false };
        let Some(n) = shard.labels().get(SHARD).and_then(|n| n.parse::<usize>().ok()) else { return false };
        match named.get(uid) {
            Some(named) => n >= *named,
            None => {
                let awaited = self.store.job(uid).is_some_and(|job| !plan::is_retired(&job));
                !awaited && self.store.grave(uid).is_none()
            }
        }
    }

    async fn remove_shard(&self, namespace: &str, shard: &ObjectMeta) -> Result<(), ApiError> {
        let name = shard.name.as_deref().unwrap_or_default();
        let guard =
            Preconditions { uid: shard.uid.clone(), resource_version: shard.resource_version.clone() };
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let what = format!("remove shard {namespace}/{name}");
        match call(&what, api.delete(name, &DeleteParams::background().preconditions(guard))).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn is_shard_of(shard: &ObjectMeta, uid: &str) -> bool {
    let labels = shard.labels.as_ref();
    labels.is_some_and(|l| l.contains_key(SHARD) && l.get(keys::JOB_UID).is_some_and(|known| known == uid))
}

fn tell(stored: &Stored, why: Why) {
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
        for entry in store.entries() {
            let Ok(policy) = entry.policy else { continue };
            // A policy that only warns deletes nothing.
            let Some(results) = policy.spec.results.as_ref().filter(|_| policy.enforced()) else { continue };
            let reference = &entry.reference;
            let scope = match reference.kind {
                PolicyKind::JobPolicy => reference.namespace.as_deref().unwrap_or_default(),
                PolicyKind::ClusterJobPolicy => "",
            };
            rules.insert(key(scope, &asker(reference.kind, &reference.name)), Bounds::from(results));
        }
        Self(Some(rules))
    }

    fn of_result(&self, stored: &Stored) -> Option<Bounds> {
        let rules = self.0.as_ref()?;
        let asked = stored.facts.policies.iter();
        let found =
            asked.filter_map(|by| rules.get(&key(&stored.namespace, by)).or_else(|| rules.get(&key("", by))));
        found.copied().reduce(Bounds::or)
    }
}

fn key(namespace: &str, asker: &str) -> String {
    format!("{namespace} {asker}")
}

/// Labels and annotations, for [`Stored::new`].
pub(crate) fn stored_of(map: &PartialObjectMeta<ConfigMap>, uid: &str, pending: bool) -> Stored {
    // A receiver that is away has yet to be told, too.
    let pending = pending || map.annotations().contains_key(OUTBOX);
    let none = BTreeMap::new();
    let made = map.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    Stored::new(
        (map.namespace().unwrap_or_default(), map.name_any(), uid.to_owned()),
        map.metadata.labels.as_ref().unwrap_or(&none),
        map.metadata.annotations.as_ref().unwrap_or(&none),
        made,
        pending,
    )
}

/// Who asked for a Job's result, for [`retention::Facts`].
pub(crate) fn askers(policies: &[Arc<job_handler_shared::combine::Policy>]) -> Vec<String> {
    let asking = policies.iter().filter(|policy| policy.spec.results.is_some());
    asking.map(|policy| asker(policy.reference.kind, &policy.reference.name)).collect()
}
