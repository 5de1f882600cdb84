//! Deletes results by the retention plan, and shards that no result names. Only the leader does this.
//!
//! A result is deleted only in the version that was read: the manifest first, then its shards, so that a stop between the
//! two leaves shards without a result (which a later run finds), never a result without its shards. If the Job still exists,
//! the collector first marks it as retired; otherwise the sink would harvest it again.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
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
        patch::{self, Written},
        result_annotations,
    },
    metrics::SinkMetrics,
    model::policy_entry::MissingPolicy,
    model::{
        job_change::Uid, result_ref::ResultRef, served_namespaces::NamespaceScope,
        stored_result::StoredResult,
    },
    object_store::FullLogStore,
    observe::store::Store,
    result::{lookup, storage::ResultStorage},
    retention::plan::{self as retention_plan, ClusterBudget, RetentionBounds},
};

/// Pause between two runs.
const INTERVAL: Duration = Duration::from_secs(10);
/// Runs between two checks of the shards.
const RUNS_PER_SHARD_CHECK: u32 = 6;
/// Concurrent deletions.
const CONCURRENT_DELETIONS: usize = 8;
/// Shards of the largest result: 64 MiB of logs (`maxBytesPerJob`) in pieces of [`crate::result::packed::DATA_MAX`]. Users may
/// have written a longer list; the search for shards without a result finds what is left.
const MAX_SHARDS: usize = 68;
/// Most results deleted per run, so that a run is not a burst of calls.
const MAX_DELETIONS: usize = 500;

/// Deletes results.
#[derive(Clone)]
pub struct GarbageCollector {
    /// Client of the apiserver.
    pub client: Client,
    /// The watch caches, with all stored results.
    pub store: Store,
    /// The sink's metrics: it counts deleted results.
    pub metrics: SinkMetrics,
    /// Bytes of all results of the cluster; none = no bound.
    pub budget: Option<ClusterBudget>,
    /// Where full logs are.
    pub objects: Option<FullLogStore>,
}

impl GarbageCollector {
    /// Runs while this sink is the leader.
    pub(crate) async fn run(self) -> Infallible {
        let mut suspects = BTreeSet::new();
        let mut round = 0u32;
        loop {
            self.delete_expired(Timestamp::now()).await;
            if round.is_multiple_of(RUNS_PER_SHARD_CHECK) {
                match self.delete_orphaned_shards(&suspects).await {
                    Ok(now) => suspects = now,
                    Err(error) => tracing::warn!("checking for shards without a result: {error}"),
                }
            }
            round = round.wrapping_add(1);
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Deletes expired results; returns their number.
    pub async fn delete_expired(&self, now: Timestamp) -> usize {
        let all = self.store.inventory().all();
        let bounds = PolicyBounds::of(&self.store);
        let expired =
            retention_plan::plan(&all, |stored| bounds.of_result(stored), self.budget.as_ref(), now);
        let in_turns = retention_plan::in_turns(&all, expired);
        let removals = in_turns.into_iter().take(MAX_DELETIONS).map(|(n, why)| {
            let stored = &all[n];
            async move {
                match self.remove(stored).await {
                    Ok(true) => {
                        self.metrics.result_removed(why.as_str());
                        tracing::info!(
                            namespace = stored.namespace,
                            result = stored.name,
                            reason = why.as_str(),
                            "deleted result"
                        );
                        1
                    }
                    Ok(false) => 0,
                    Err(error) if error.is_conflict() || error.is_terminating() => 0,
                    Err(error) => {
                        self.metrics.action_failed("remove result");
                        tracing::warn!(
                            namespace = stored.namespace,
                            result = stored.name,
                            "{error}; retrying"
                        );
                        0
                    }
                }
            }
        });
        futures::stream::iter(removals)
            .buffer_unordered(CONCURRENT_DELETIONS)
            .fold(0, async |sum, n| sum + n)
            .await
    }

    async fn remove(&self, stored: &StoredResult) -> Result<bool, ApiError> {
        let StoredResult { kind, namespace, name, uid, .. } = stored;
        // Without the right to read Secrets, it cannot be deleted either.
        if *kind == StorageKind::Secret && !self.store.secrets.is_allowed() {
            return Ok(false);
        }
        let here = ResultRef::at(*kind, namespace, name);
        let found = lookup::read_at(&self.client, &self.store.seal, *kind, namespace, name, uid).await?;
        let Some(found) = found else {
            // It was deleted, or edited so that it is no longer a result.
            self.store.remove_stored(&here, Some(uid));
            return Ok(false);
        };
        let results = self.store.results_of_uid(uid);
        let only = results.iter().all(|result| result.is_at(&here));
        if let Some(job) = self
            .store
            .job_in(namespace, uid)
            .filter(|job| only && !result_annotations::is_result_removed(job))
        {
            // The reconciler marks the Job first; retiring needs that mark.
            if !result_annotations::is_harvested(&job) {
                return Ok(false);
            }
            match patch::mark_result_removed(&self.client, &job).await? {
                // The cache must show it before the watch shows the deleted result.
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
        self.store.remove_stored(&here, Some(uid));
        let shards = found.manifest.logs.iter().flat_map(|logs| &logs.shards);
        for shard in shards.take(MAX_SHARDS) {
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

    /// The object store's garbage collector deletes what remains.
    async fn remove_objects(&self, namespace: &str, uid: &str) {
        if self.store.inventory().objects(namespace, uid).is_some() {
            // The same result exists under its other name.
            return;
        }
        let removed = match &self.objects {
            Some(objects) => objects.remove(namespace, uid).await.map(drop),
            None => Err("no object store is configured".to_owned()),
        };
        if let Err(why) = removed {
            self.metrics.action_failed("remove objects");
            tracing::warn!(namespace, job_uid = uid, "full logs of a deleted result remain for now: {why}");
        }
    }

    /// Deletes shards that no result named on the last check either; returns those that none names now.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub async fn delete_orphaned_shards(
        &self,
        suspects: &BTreeSet<String>,
    ) -> Result<BTreeSet<String>, ApiError> {
        let mut now = BTreeSet::new();
        for kind in StorageKind::readable(self.store.secrets.is_allowed()) {
            for scope in self.store.served.scopes() {
                self.delete_orphaned_shards_of(*kind, &scope, suspects, &mut now).await?;
            }
        }
        Ok(now)
    }

    async fn delete_orphaned_shards_of(
        &self,
        kind: StorageKind,
        scope: &NamespaceScope,
        suspects: &BTreeSet<String>,
        now: &mut BTreeSet<String>,
    ) -> Result<(), ApiError> {
        let storage = ResultStorage::of_scope(&self.client, kind, scope);
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
                    Ok(()) => tracing::info!(namespace, shard = name, "deleted shard that no result names"),
                    Err(error) => tracing::warn!(namespace, shard = name, "{error}; retrying"),
                }
            }
            match next {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(()),
            }
        }
    }

    /// Whether no result names this shard, and no harvest will.
    fn is_orphan(&self, shard: &ObjectMeta, named: &HashMap<(String, Uid), usize>) -> bool {
        let Some(labels) = &shard.labels else { return false };
        let Some(uid) = labels.get(keys::JOB_UID) else { return false };
        let Some(n) = labels.get(SHARD).and_then(|n| n.parse::<usize>().ok()) else { return false };
        let namespace = shard.namespace.as_deref().unwrap_or_default();
        let named = named.get(&(namespace.to_owned(), uid.clone()));
        named.is_none_or(|named| n >= *named) && !self.store.awaits_result(namespace, uid, named.is_some())
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

/// The bounds of the current policies, by policy, within what the operator allows.
#[derive(Default)]
struct PolicyBounds {
    bounds: HashMap<String, RetentionBounds>,
    /// The namespaces of policies that cannot be read; "" for those of the cluster.
    unreadable: BTreeSet<String>,
}

impl PolicyBounds {
    fn of(store: &Store) -> Self {
        let max = store.namespace_bytes_max().unwrap_or(u64::MAX);
        let mut known = Self::default();
        for entry in store.policy_entries() {
            let policy = match entry.policy {
                Ok(policy) => policy,
                // As if it had been deleted.
                Err(MissingPolicy::NoRoom) => continue,
                Err(MissingPolicy::Unreadable(_) | MissingPolicy::Awaited) => {
                    known.unreadable.insert(entry.reference.namespace.unwrap_or_default());
                    continue;
                }
            };
            // A policy that only warns deletes nothing.
            let Some(results) = policy.spec.results.as_ref().filter(|_| policy.enforced()) else { continue };
            let reference = &entry.reference;
            let scope = match reference.kind {
                PolicyKind::JobPolicy => reference.namespace.as_deref().unwrap_or_default(),
                PolicyKind::ClusterJobPolicy => "",
            };
            let mut own = RetentionBounds::from(results);
            own.max_bytes = own.max_bytes.min(max);
            known.bounds.insert(key(scope, &requesting_policy(reference.kind, &reference.name)), own);
        }
        known
    }

    fn of_result(&self, stored: &StoredResult) -> Option<RetentionBounds> {
        // A policy that cannot be read may be the one with the largest bound.
        if ["", &stored.namespace].iter().any(|namespace| self.unreadable.contains(*namespace)) {
            return None;
        }
        let bound = |namespace: &str, by: &str| self.bounds.get(&key(namespace, by));
        let asked = stored.facts.policies.iter();
        let found = asked.filter_map(|by| bound(&stored.namespace, by).or_else(|| bound("", by)));
        found.copied().reduce(RetentionBounds::or)
    }
}

fn key(namespace: &str, requesting_policy: &str) -> String {
    format!("{namespace} {requesting_policy}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use job_handler_shared::{result::metadata::RetentionFacts, testing::policies::namespaced};
    use serde_json::json;

    use super::*;
    use crate::test_support::policy_entry;

    #[test]
    fn no_policy_keeps_more_bytes_than_the_operator_allows() {
        let store = Store::default();
        for (name, bytes) in [("large", "1Gi"), ("small", "4Ki")] {
            let policy = namespaced(name, json!({"results": {"maxBytesPerNamespace": bytes}}));
            store.put_policy(policy_entry(1, policy));
        }
        let max_bytes = |asked: &[&str]| {
            let policies = asked.iter().map(|name| requesting_policy(PolicyKind::JobPolicy, name)).collect();
            let stored = StoredResult {
                kind: StorageKind::default(),
                namespace: "ci".to_owned(),
                name: "a-results".to_owned(),
                uid: "u".to_owned(),
                group: None,
                pending: false,
                facts: Arc::new(RetentionFacts { policies, ..RetentionFacts::default() }),
            };
            PolicyBounds::of(&store).of_result(&stored).map(|bounds| bounds.max_bytes)
        };
        assert_eq!(max_bytes(&["large"]), Some(1 << 30), "the operator sets no maximum");
        store.set_namespace_bytes_max(Some(1 << 20));
        assert_eq!(max_bytes(&["large"]), Some(1 << 20));
        assert_eq!(max_bytes(&["small"]), Some(4 << 10));
        assert_eq!(max_bytes(&["small", "large"]), Some(1 << 20));
    }
}
