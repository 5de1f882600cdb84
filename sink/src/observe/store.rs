//! The watch caches: Jobs as snapshots, policies, namespace labels, results, webhook replicas.
//!
//! One state behind one lock that is only held for a lookup; readers get copies. Every write goes through
//! [`Store::update`], which wakes the subscribers if the write changed anything they depend on, so that no caller can
//! forget to. Methods about policies are in `store_policies.rs`, those about
//! results and CloudEvents in `store_results.rs`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use job_handler_shared::{
    job::{scope::without_group_label, snapshot::JobSnapshot},
    policy::{
        effective::EffectivePolicy,
        index::{NamespacePolicies, PolicyIndex},
        parsed::Policy,
        reference::Labels,
        status::LastRefusal,
    },
};
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use crate::{
    model::{
        job_change::{GroupKey, JobChange, Uid},
        replica::Replica,
        result_ref::ResultRef,
        served_namespaces::ServedNamespaces,
    },
    observe::{
        changes::Changes, job_index::JobIndex, ledger_index::LedgerIndex, result_inventory::Inventory,
        secret_access::SecretAccess, store_policies::KnownPolicy, tombstones::DeletedJob,
    },
    result::seal::Seal,
};

/// Job changes that a subscriber may lag behind before it has to read all Jobs.
const MAX_LAG: usize = 4_096;

/// What the watches know; clones share the same state.
#[derive(Clone, Debug)]
pub struct Store {
    /// The JobLedgers.
    pub(crate) ledgers: LedgerIndex,
    /// Whether results may be stored in Secrets.
    pub secrets: SecretAccess,
    /// The namespaces that this sink serves.
    pub served: ServedNamespaces,
    /// Recognises what the sinks wrote.
    pub seal: Seal,
    pub(super) state: Arc<Mutex<StoreState>>,
    changes: Changes,
    job_changes: broadcast::Sender<Uid>,
    inventory: Inventory,
}

#[derive(Debug, Default)]
pub(super) struct StoreState {
    pub(super) index: JobIndex,
    /// The policies that apply, and the namespaces.
    pub(super) rules: PolicyIndex<Uid>,
    /// All policies with their statuses.
    pub(super) policies: BTreeMap<Uid, KnownPolicy>,
    pub(super) results: HashMap<Uid, BTreeSet<ResultRef>>,
    replicas: BTreeMap<String, Replica>,
    pub(super) refusals: HashMap<String, LastRefusal>,
    known_receivers: Arc<BTreeSet<String>>,
    pub(super) namespace_bytes_max: Option<u64>,
    /// The policies name labels that were dropped from some Job.
    pub(super) lacks_labels: bool,
}

/// Whether a write changed something that subscribers depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Changed,
    Unchanged,
}

impl From<bool> for Effect {
    fn from(changed: bool) -> Self {
        if changed { Self::Changed } else { Self::Unchanged }
    }
}

impl Default for Store {
    fn default() -> Self {
        let changes = Changes::default();
        Self {
            ledgers: LedgerIndex::new(changes.clone()),
            secrets: SecretAccess::new(changes.clone()),
            served: ServedNamespaces::default(),
            seal: Seal::default(),
            state: Arc::default(),
            changes,
            job_changes: broadcast::Sender::new(MAX_LAG),
            inventory: Inventory::default(),
        }
    }
}

impl Store {
    /// The only way to write: the caller has to say whether anything changed, and subscribers are woken accordingly.
    pub(super) fn update<T>(&self, write: impl FnOnce(&mut StoreState) -> (T, Effect)) -> T {
        let (value, effect) = write(&mut self.state.lock());
        if effect == Effect::Changed {
            self.changes.notify();
        }
        value
    }

    /// All stored results.
    pub(crate) fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Wakes the receiver after each change that a status or a webhook entry may depend on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Uids of Jobs that have changed. A receiver that lags reads all Jobs instead.
    pub(crate) fn job_changes(&self) -> broadcast::Receiver<Uid> {
        self.job_changes.subscribe()
    }

    // -- Jobs

    /// Adds or replaces a Job.
    pub fn put_job(&self, job: JobSnapshot) -> JobChange {
        let uid = (self.job_changes.receiver_count() > 0).then(|| job.uid.clone());
        let change = self.update(|state| (state.index.put(job, &state.rules), Effect::Changed));
        // Sending fails if there is no subscriber.
        uid.into_iter().for_each(|uid| _ = self.job_changes.send(uid));
        change
    }

    /// Removes a deleted Job; see [`JobIndex::remove`].
    pub fn remove_job(&self, uid: &str, last: Option<JobSnapshot>) -> Option<Option<GroupKey>> {
        self.update(|state| {
            let group = state.index.remove(uid, last, &state.rules);
            let effect = group.is_some().into();
            (group, effect)
        })
    }

    /// Removes every Job that is not in `listed`, at the end of a relist. Returns their uids and groups.
    pub fn retain_jobs(&self, listed: &BTreeSet<Uid>) -> Vec<(Uid, Option<GroupKey>)> {
        self.update(|state| {
            let gone: Vec<Uid> =
                state.index.jobs.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
            let remove = |uid: Uid| {
                let group = state.index.remove(&uid, None, &state.rules)?;
                Some((uid, group))
            };
            let removed: Vec<_> = gone.into_iter().filter_map(remove).collect();
            let effect = (!removed.is_empty()).into();
            (removed, effect)
        })
    }

    /// Whether the Jobs have to be listed again: the policies name labels that were dropped from some of them, which no policy
    /// selects until then.
    pub(crate) fn lacks_labels(&self) -> bool {
        self.state.lock().lacks_labels
    }

    /// A list of all Jobs begins, with the labels that the policies of now name.
    pub(crate) fn list_began(&self) {
        self.update(|state| (state.lacks_labels = false, Effect::Unchanged));
    }

    /// Jobs that finished since the last call, deleted ones included, and whether these are all.
    pub(crate) fn drain_finished(&self) -> (Vec<Arc<JobSnapshot>>, bool) {
        self.update(|state| (state.index.drain_finished(), Effect::Unchanged))
    }

    /// The namespace of a Job, also of a deleted one; empty if it is not known.
    pub(crate) fn namespace_of(&self, uid: &str) -> String {
        let state = self.state.lock();
        let present = state.index.jobs.get(uid).map(|known| known.job.namespace.clone());
        let deleted = || state.index.deleted.get(uid).map(|deleted| deleted.job.namespace.clone());
        let sealed = || state.results.get(uid)?.iter().find(|result| result.sealed);
        let stored = || sealed().map(|result| result.namespace.clone());
        present.or_else(deleted).or_else(stored).unwrap_or_default()
    }

    /// One Job.
    pub fn job(&self, uid: &str) -> Option<Arc<JobSnapshot>> {
        self.state.lock().index.jobs.get(uid).map(|known| known.job.clone())
    }

    /// One Job, if it is in this namespace: objects of other namespaces can name its uid, too.
    pub(crate) fn job_in(&self, namespace: &str, uid: &str) -> Option<Arc<JobSnapshot>> {
        self.job(uid).filter(|job| job.namespace == namespace)
    }

    pub(crate) fn jobs(&self) -> Vec<Arc<JobSnapshot>> {
        self.state.lock().index.jobs.values().map(|known| known.job.clone()).collect()
    }

    pub(crate) fn unfinished(&self) -> Vec<Arc<JobSnapshot>> {
        self.state.lock().index.unfinished().map(|known| known.job.clone()).collect()
    }

    /// The Jobs of one group.
    pub(crate) fn group(&self, key: &GroupKey) -> Vec<Arc<JobSnapshot>> {
        let state = self.state.lock();
        let uids = state.index.groups.get(key).into_iter().flatten();
        uids.filter_map(|uid| state.index.jobs.get(uid)).map(|known| known.job.clone()).collect()
    }

    /// The group of a Job that is known.
    pub fn group_of(&self, uid: &str) -> Option<GroupKey> {
        self.state.lock().index.jobs.get(uid).and_then(|known| known.group.clone())
    }

    /// All groups of more than one Job.
    pub(crate) fn groups(&self) -> Vec<GroupKey> {
        let state = self.state.lock();
        state.index.groups.iter().filter(|(_, jobs)| jobs.len() > 1).map(|(key, _)| key.clone()).collect()
    }

    // -- Jobs that were deleted before their result was stored

    pub(crate) fn deleted_job(&self, uid: &str) -> Option<DeletedJob> {
        self.state.lock().index.deleted.get(uid).cloned()
    }

    /// Uids of all deleted Jobs whose result was not stored.
    pub fn deleted_jobs(&self) -> Vec<Uid> {
        self.state.lock().index.deleted.uids()
    }

    /// Keeps a deleted Job for longer, since it could not be reported yet.
    pub(crate) fn renew_deleted_job(&self, uid: &str) {
        self.update(|state| (state.index.deleted.renew(uid), Effect::Unchanged));
    }

    /// Forgets a deleted Job that has been reported.
    pub(crate) fn forget_deleted_job(&self, uid: &str) {
        self.update(|state| (state.index.deleted.remove(uid), Effect::Unchanged));
    }

    // -- Policies and namespaces

    /// What the enforced policies say about a Job; None while the labels of its namespace, or its own, are not known.
    pub(crate) fn effective(&self, job: &JobSnapshot) -> Option<EffectivePolicy> {
        Some(self.policies_for(job)?.effective(&without_group_label(&job.labels)))
    }

    /// The enforced policies that select a Job, in order of precedence; None while the labels of its namespace, or its own,
    /// are not known.
    pub(crate) fn matching(&self, job: &JobSnapshot) -> Option<Vec<Arc<Policy>>> {
        let policies = self.policies_for(job)?;
        let matching = policies.matching(&without_group_label(&job.labels));
        Some(matching.into_iter().cloned().collect())
    }

    fn policies_for(&self, job: &JobSnapshot) -> Option<NamespacePolicies> {
        let state = self.state.lock();
        let knows_labels = job.knows_labels(state.rules.all().label_keys().of(&job.namespace));
        state.rules.in_namespace(&job.namespace).filter(|_| knows_labels)
    }

    /// Adds a namespace or replaces its labels; returns its Jobs if the labels are new.
    pub fn put_namespace(&self, name: &str, labels: Labels) -> Vec<Uid> {
        self.update(|state| {
            if !state.rules.put_namespace(name, labels) {
                return (Vec::new(), Effect::Unchanged);
            }
            let uids = state.index.in_namespace(name);
            uids.iter().for_each(|uid| state.index.regroup(uid, &state.rules));
            (uids, Effect::Changed)
        })
    }

    /// The labels of a namespace.
    pub(crate) fn namespace(&self, name: &str) -> Option<Arc<Labels>> {
        self.state.lock().rules.namespace(name)
    }

    /// Removes namespaces for which `is_gone` holds.
    pub(crate) fn remove_namespaces(&self, is_gone: impl Fn(&str) -> bool) {
        self.update(|state| {
            state.rules.retain_namespaces(|name| !is_gone(name));
            ((), Effect::Unchanged)
        });
    }

    // -- Refusals, webhook replicas, receivers

    /// Records the last refusal of a policy.
    pub(crate) fn put_refusal(&self, policy: &str, refusal: LastRefusal) {
        self.update(|state| {
            let known = state.policies.contains_key(policy);
            if known {
                state.refusals.insert(policy.to_owned(), refusal);
            }
            ((), known.into())
        });
    }

    /// The last refusal of a policy that this sink received.
    pub(crate) fn refusal(&self, policy: &str) -> Option<LastRefusal> {
        self.state.lock().refusals.get(policy).cloned()
    }

    /// Adds or replaces a webhook replica.
    pub(crate) fn put_replica(&self, name: &str, mut replica: Replica) {
        self.update(|state| {
            let before = state.replicas.get(name);
            let changed = before.is_none_or(|known| known.policies != replica.policies);
            if let Some(known) = before
                && known.renewed == replica.renewed
            {
                replica.seen = known.seen;
            }
            state.replicas.insert(name.to_owned(), replica);
            ((), changed.into())
        });
    }

    /// Removes replicas for which `is_gone` holds.
    pub(crate) fn remove_replicas(&self, is_gone: impl Fn(&str) -> bool) {
        self.update(|state| {
            state.replicas.retain(|name, _| !is_gone(name));
            ((), Effect::Changed)
        });
    }

    /// The webhook replicas by the name of their Lease.
    pub(crate) fn replicas(&self) -> BTreeMap<String, Replica> {
        self.state.lock().replicas.clone()
    }

    /// Sets which receivers of CloudEvents are configured.
    pub(crate) fn set_known_receivers(&self, names: BTreeSet<String>) {
        self.update(|state| (state.known_receivers = Arc::new(names), Effect::Changed));
    }

    pub(crate) fn known_receivers(&self) -> Arc<BTreeSet<String>> {
        self.state.lock().known_receivers.clone()
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
