//! What the watches know: Jobs cut down to snapshots, policies, namespaces' labels, results, webhook replicas.
//!
//! One map behind one lock that is only ever held for a lookup. Nothing here waits; whoever acts takes copies out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use job_handler_shared::{
    job::{group::group_of, scope::without_group_label, snapshot::JobSnapshot},
    names,
    policy::{
        effective::EffectivePolicy,
        index::PolicyIndex,
        parsed::Policy,
        reference::{Labels, PolicyRef},
        set::PolicySet,
        status::{LastRefusal, PolicyStatus},
    },
    result::pending_events::PendingEvents,
};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{broadcast, watch};

use crate::{
    jobs::marks,
    model::{
        job_change::{Change, GroupKey, Uid},
        pending_events,
        policy_entry::PolicyEntry,
        replica::Replica,
        result_ref::ResultRef,
    },
    observe::{
        ledger_index::Ledgers,
        result_inventory::Inventory,
        secret_access::Secrets,
        tombstones::{Buried, Graves},
    },
};

/// Changed Jobs that a listener may be behind.
const NEWS: usize = 4_096;
/// Jobs that have ended and are remembered until somebody asks for them.
const MOST_ENDED: usize = 2000;

/// The shared state; clones are the same one.
#[derive(Clone, Debug)]
pub struct Store {
    /// The ledgers.
    pub ledgers: Ledgers,
    /// Whether results may be held in Secrets.
    pub secrets: Secrets,
    inner: Arc<Mutex<Inner>>,
    /// Counts every change that a status or an entry could depend on.
    changes: watch::Sender<u64>,
    /// Uids of Jobs that have changed; who falls behind looks at all of them.
    news: broadcast::Sender<Uid>,
    inventory: Inventory,
}

#[derive(Debug, Default)]
struct Inner {
    jobs: HashMap<Uid, Known>,
    /// Those of them that are not finished: few, where many finished ones lie around.
    unfinished: BTreeSet<Uid>,
    by_namespace: HashMap<String, BTreeSet<Uid>>,
    groups: HashMap<GroupKey, BTreeSet<Uid>>,
    /// The policies that can be read, and the namespaces.
    policies: PolicyIndex<Uid>,
    /// All policies with their statuses.
    entries: BTreeMap<Uid, PolicyEntry>,
    results: HashMap<Uid, BTreeSet<ResultRef>>,
    buried: Graves,
    replicas: BTreeMap<String, Replica>,
    refusals: HashMap<String, LastRefusal>,
    /// Jobs that were seen to end and that nobody has asked for yet.
    ended: Vec<Arc<JobSnapshot>>,
    /// There were more.
    ended_more: bool,
    known_sinks: Arc<BTreeSet<String>>,
}

#[derive(Debug)]
struct Known {
    job: Arc<JobSnapshot>,
    group: Option<GroupKey>,
    /// Receivers of CloudEvents that want to be told of it …
    sinks: BTreeSet<String>,
    /// … and those that have been told that it was started.
    told: BTreeSet<String>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            ledgers: Ledgers::default(),
            secrets: Secrets::default(),
            inner: Arc::default(),
            changes: watch::Sender::new(0),
            inventory: Inventory::default(),
            news: broadcast::Sender::new(NEWS),
        }
    }
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    fn changed(&self) {
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// All stored results.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Tells of changes; the value is a count.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tells which Jobs have changed.
    pub fn news(&self) -> broadcast::Receiver<Uid> {
        self.news.subscribe()
    }

    /// Takes in a Job.
    pub fn put_job(&self, job: JobSnapshot) -> Change {
        let uid = (self.news.receiver_count() > 0).then(|| job.uid.clone());
        let change = self.lock().put_job(job);
        self.changed();
        // An error says that nobody listens any more.
        uid.into_iter().for_each(|uid| _ = self.news.send(uid));
        change
    }

    /// Forgets a Job that is gone, but for what [`Buried`] is for; `last` is how it was last, where that is known. Gives
    /// its group.
    pub fn bury(&self, uid: &str, last: Option<JobSnapshot>) -> Option<Option<GroupKey>> {
        let group = self.lock().bury(uid, last)?;
        self.changed();
        Some(group)
    }

    /// Does the same for every Job that is not in `seen` (the end of a relist); gives their groups.
    pub fn keep_jobs(&self, seen: &BTreeSet<Uid>) -> Vec<(Uid, Option<GroupKey>)> {
        let mut inner = self.lock();
        let gone: Vec<Uid> = inner.jobs.keys().filter(|uid| !seen.contains(*uid)).cloned().collect();
        let groups: Vec<_> =
            gone.into_iter().filter_map(|uid| inner.bury(&uid, None).map(|group| (uid, group))).collect();
        drop(inner);
        if !groups.is_empty() {
            self.changed();
        }
        groups
    }

    /// Jobs that have ended since this was asked last, those that are gone too, and whether these are all.
    pub fn take_ended(&self) -> (Vec<Arc<JobSnapshot>>, bool) {
        let mut inner = self.lock();
        let whole = !std::mem::take(&mut inner.ended_more);
        (std::mem::take(&mut inner.ended), whole)
    }

    /// What may be done with Secrets is another thing now.
    pub fn secrets_changed(&self) {
        self.changed();
    }

    /// A ledger was seen or is gone.
    pub fn ledgers_changed(&self) {
        self.changed();
    }

    /// A Job that was gone before its result was stored.
    pub fn grave(&self, uid: &str) -> Option<Buried> {
        self.lock().buried.get(uid).cloned()
    }

    /// All such Jobs.
    pub fn buried(&self) -> Vec<Uid> {
        self.lock().buried.uids()
    }

    /// It could not be written down yet: it is remembered longer.
    pub fn renew_grave(&self, uid: &str) {
        self.lock().buried.renew(uid);
    }

    /// What there was to say of it is written down.
    pub fn unbury(&self, uid: &str) {
        self.lock().buried.remove(uid);
    }

    /// The namespace of a Job, there or gone; empty where it is not known.
    pub fn namespace_of(&self, uid: &str) -> String {
        let inner = self.lock();
        let there = inner.jobs.get(uid).map(|known| known.job.namespace.clone());
        let gone = || inner.buried.get(uid).map(|grave| grave.job.namespace.clone());
        let stored = || inner.results.get(uid)?.first().map(|place| place.namespace.clone());
        there.or_else(gone).or_else(stored).unwrap_or_default()
    }

    /// One Job.
    pub fn job(&self, uid: &str) -> Option<Arc<JobSnapshot>> {
        self.lock().jobs.get(uid).map(|known| known.job.clone())
    }

    /// All Jobs.
    pub fn jobs(&self) -> Vec<Arc<JobSnapshot>> {
        self.lock().jobs.values().map(|known| known.job.clone()).collect()
    }

    /// Those that are not finished.
    pub fn unfinished(&self) -> Vec<Arc<JobSnapshot>> {
        let inner = self.lock();
        let known = inner.unfinished.iter().filter_map(|uid| inner.jobs.get(uid));
        known.map(|known| known.job.clone()).collect()
    }

    /// The Jobs of one group.
    pub fn group(&self, key: &GroupKey) -> Vec<Arc<JobSnapshot>> {
        let inner = self.lock();
        let uids = inner.groups.get(key).into_iter().flatten();
        uids.filter_map(|uid| inner.jobs.get(uid)).map(|known| known.job.clone()).collect()
    }

    /// A Job's group.
    pub fn group_of(&self, uid: &str) -> Option<GroupKey> {
        self.lock().jobs.get(uid).and_then(|known| known.group.clone())
    }

    /// All groups of more than one Job.
    pub fn groups(&self) -> Vec<GroupKey> {
        let inner = self.lock();
        inner.groups.iter().filter(|(_, jobs)| jobs.len() > 1).map(|(key, _)| key.clone()).collect()
    }

    /// What the enforced policies say about a Job; nothing while its namespace is not known.
    pub fn effective(&self, job: &JobSnapshot) -> Option<EffectivePolicy> {
        let policies = self.lock().policies.in_namespace(&job.namespace)?;
        Some(policies.effective(&without_group_label(&job.labels)))
    }

    /// The enforced policies that select a Job, in order of precedence; nothing while its namespace is not known.
    pub fn matching(&self, job: &JobSnapshot) -> Option<Vec<Arc<Policy>>> {
        let policies = self.lock().policies.in_namespace(&job.namespace)?;
        let matching = policies.matching(&without_group_label(&job.labels));
        Some(matching.into_iter().cloned().collect())
    }

    /// All policies that can be read, in whatever mode, and the namespaces' labels.
    pub fn policies(&self) -> Arc<PolicySet> {
        self.lock().policies.all().clone()
    }

    /// A namespace's labels.
    pub fn namespace(&self, name: &str) -> Option<Arc<Labels>> {
        self.lock().policies.namespace(name)
    }

    /// All policies as they stand.
    pub fn entries(&self) -> Vec<PolicyEntry> {
        self.lock().entries.values().cloned().collect()
    }

    /// Takes in a policy; tells whether its revision is another.
    pub fn put_policy(&self, entry: PolicyEntry) -> bool {
        let mut inner = self.lock();
        let uid = entry.reference.uid.clone();
        let (generation, policy) = (entry.generation, entry.policy.as_ref().ok().cloned());
        let before = inner.entries.insert(uid.clone(), entry);
        let spec = before.is_none_or(|old| old.generation != generation);
        if inner.policies.put(uid, policy) {
            inner.regroup_all();
        }
        drop(inner);
        self.changed();
        spec
    }

    /// Remembers a status that was just written, until the watch brings it.
    pub fn put_status(&self, uid: &str, generation: i64, status: PolicyStatus) {
        let mut inner = self.lock();
        if let Some(entry) = inner.entries.get_mut(uid).filter(|entry| entry.generation == generation) {
            entry.status = status;
        }
    }

    /// Forgets policies for which `gone` holds; tells whether there were any.
    pub fn drop_policies(&self, gone: impl Fn(&PolicyRef) -> bool) -> bool {
        let mut inner = self.lock();
        let before = inner.entries.len();
        inner.entries.retain(|_, entry| !gone(&entry.reference));
        let Inner { entries, refusals, .. } = &mut *inner;
        refusals.retain(|uid, _| entries.contains_key(uid));
        let fewer = inner.entries.len() != before;
        let Inner { policies, entries, .. } = &mut *inner;
        if policies.retain(|uid| entries.contains_key(uid)) {
            inner.regroup_all();
        }
        drop(inner);
        if fewer {
            self.changed();
        }
        fewer
    }

    /// Takes in a namespace's labels; gives the Jobs in it if they are new.
    pub fn put_namespace(&self, name: &str, labels: Labels) -> Vec<Uid> {
        let mut inner = self.lock();
        if !inner.policies.put_namespace(name, labels) {
            return Vec::new();
        }
        let uids: Vec<Uid> = inner.by_namespace.get(name).into_iter().flatten().cloned().collect();
        for uid in &uids {
            inner.regroup(uid);
        }
        drop(inner);
        self.changed();
        uids
    }

    /// Forgets namespaces for which `gone` holds.
    pub fn drop_namespaces(&self, gone: impl Fn(&str) -> bool) {
        self.lock().policies.retain_namespaces(|name| !gone(name));
    }

    /// Takes in a result's whereabouts.
    pub fn put_result(&self, job: &str, result: ResultRef) {
        let mut inner = self.lock();
        let places = inner.results.entry(job.to_owned()).or_default();
        let mut result = result;
        let known = places.iter().find(|known| known.is_at(&result)).cloned();
        if let Some(known) = known {
            places.remove(&known);
            // Whoever wrote it knows less than the watch has told.
            if result.bytes == 0 {
                (result.bytes, result.lost, result.policies) = (known.bytes, known.lost, known.policies);
            }
        }
        let news = !result.outbox.is_empty() || result.bytes > 0;
        places.insert(result);
        drop(inner);
        if news {
            self.changed();
        }
    }

    /// Forgets results for which `gone` holds (given the Job's uid and the place).
    pub fn drop_results(&self, gone: impl Fn(&str, &ResultRef) -> bool) {
        self.lock().results.retain(|uid, places| {
            places.retain(|place| !gone(uid, place));
            !places.is_empty()
        });
        self.changed();
    }

    /// Where the result of a Job is, by the labels of what has a name for it: whoever acts on that reads it first. Copies
    /// under other names are not results.
    pub fn places(&self, job: &JobSnapshot) -> Vec<ResultRef> {
        let own = [names::result_name(&job.name), names::result_name_with_uid(&job.name, &job.uid)];
        let mut places = self.places_of(&job.uid);
        places.retain(|place| place.namespace == job.namespace && own.contains(&place.name));
        places
    }

    /// The same of a Job that may be gone: all places by its uid.
    pub fn places_of(&self, uid: &str) -> Vec<ResultRef> {
        self.lock().results.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Whether some policy is there that cannot be read: what it asks for is not known.
    pub fn is_any_policy_unreadable(&self) -> bool {
        self.lock().entries.values().any(|entry| entry.policy.is_err())
    }

    /// Uids of all Jobs, there or gone, whose result has pending announcements.
    pub fn pending_results(&self) -> Vec<Uid> {
        let inner = self.lock();
        let pending = inner.results.iter().filter(|(_, places)| places.iter().any(|place| place.pending));
        pending.map(|(uid, _)| uid.clone()).collect()
    }

    /// Uids of the Jobs, there or gone, of which this receiver of CloudEvents is still to be told something.
    pub fn untold(&self, sink: &str) -> Vec<Uid> {
        let inner = self.lock();
        let named = |place: &ResultRef| place.outbox.iter().any(|name| name == sink);
        let of_results =
            inner.results.iter().filter(|(_, places)| places.iter().any(named)).map(|(uid, _)| uid);
        let running = |known: &Known| {
            known.job.started.is_some()
                && known.job.finished.is_none()
                && known.sinks.contains(sink)
                && !known.told.contains(sink)
        };
        let of_jobs = inner.jobs.iter().filter(|(_, known)| running(known)).map(|(uid, _)| uid);
        let both: BTreeSet<&Uid> = of_results.chain(of_jobs).collect();
        both.into_iter().cloned().collect()
    }

    /// The receivers of CloudEvents that a policy names.
    pub fn sinks_of(&self, policy: &str) -> Vec<String> {
        let inner = self.lock();
        let policy = inner.entries.get(policy).and_then(|entry| entry.policy.as_ref().ok());
        policy.map_or_else(Vec::new, |p| {
            p.spec.cloud_event_sinks.iter().map(|sink| sink.name.clone()).collect()
        })
    }

    /// All results.
    pub fn results(&self) -> Vec<ResultRef> {
        self.lock().results.values().flatten().cloned().collect()
    }

    /// Uids of the enforced policies that ask for this Job's result.
    pub fn askers(&self, job: &JobSnapshot) -> Vec<String> {
        let policies = self.matching(job).unwrap_or_default();
        let ask = policies.into_iter().filter(|policy| policy.spec.results.is_some());
        ask.map(|policy| policy.reference.uid.clone()).collect()
    }

    /// The enforced policies.
    pub fn enforced(&self) -> Arc<PolicySet> {
        self.lock().policies.enforced().clone()
    }

    /// Sets which receivers of CloudEvents are configured.
    pub fn set_known_sinks(&self, names: BTreeSet<String>) {
        self.lock().known_sinks = Arc::new(names);
    }

    /// Which receivers of CloudEvents are configured.
    pub fn known_sinks(&self) -> Arc<BTreeSet<String>> {
        self.lock().known_sinks.clone()
    }

    /// This receiver has been told that the Job was started.
    pub fn put_told(&self, uid: &str, sink: &str) {
        if let Some(known) = self.lock().jobs.get_mut(uid) {
            known.told.insert(sink.to_owned());
        }
    }

    /// What is to be told of a Job that has finished.
    pub fn events_of(&self, job: &JobSnapshot) -> PendingEvents {
        let inner = self.lock();
        match (inner.jobs.get(&job.uid), inner.buried.get(&job.uid)) {
            (Some(known), _) => pending_events::pending(job, &known.sinks, &known.told),
            (None, Some(grave)) => grave.events.clone(),
            (None, None) => PendingEvents::new(),
        }
    }

    /// Takes in a policy's last refusal.
    pub fn put_refusal(&self, policy: &str, refusal: LastRefusal) {
        let mut inner = self.lock();
        if inner.entries.contains_key(policy) {
            inner.refusals.insert(policy.to_owned(), refusal);
        }
        drop(inner);
        self.changed();
    }

    /// The last refusal of a policy that this sink was told of.
    pub fn refusal(&self, policy: &str) -> Option<LastRefusal> {
        self.lock().refusals.get(policy).cloned()
    }

    /// Takes in a webhook replica's Lease.
    pub fn put_replica(&self, name: &str, mut replica: Replica) {
        let mut inner = self.lock();
        let before = inner.replicas.get(name);
        let changed = before
            .is_none_or(|known| known.enforces != replica.enforces || known.withheld != replica.withheld);
        if let Some(known) = before
            && known.renewed == replica.renewed
        {
            replica.seen = known.seen;
        }
        inner.replicas.insert(name.to_owned(), replica);
        drop(inner);
        if changed {
            self.changed();
        }
    }

    /// Forgets replicas for which `gone` holds.
    pub fn drop_replicas(&self, gone: impl Fn(&str) -> bool) {
        self.lock().replicas.retain(|name, _| !gone(name));
        self.changed();
    }

    /// The webhook replicas by the name of their Lease.
    pub fn replicas(&self) -> BTreeMap<String, Replica> {
        self.lock().replicas.clone()
    }
}

impl Inner {
    fn put_job(&mut self, job: JobSnapshot) -> Change {
        let (uid, namespace) = (job.uid.clone(), job.namespace.clone());
        let before = self.jobs.get(&uid);
        let mut change = Change {
            new: before.is_none(),
            finished_now: before.is_some_and(|b| b.job.finished.is_none()) && job.finished.is_some(),
            group: None,
        };
        let ends = before.is_none_or(|b| b.job.finished.is_none());
        let (group, sinks, told) =
            before.map(|b| (b.group.clone(), b.sinks.clone(), b.told.clone())).unwrap_or_default();
        let job = Arc::new(job);
        if ends {
            self.end(&job);
        }
        if job.finished.is_none() {
            self.unfinished.insert(uid.clone());
        } else {
            self.unfinished.remove(&uid);
        }
        self.jobs.insert(uid.clone(), Known { job, group, sinks, told });
        self.by_namespace.entry(namespace).or_default().insert(uid.clone());
        self.regroup(&uid);
        change.group = self.jobs.get(&uid).and_then(|known| known.group.clone());
        change
    }

    fn bury(&mut self, uid: &str, last: Option<JobSnapshot>) -> Option<Option<GroupKey>> {
        let Known { job, group, sinks, told } = self.drop_job(uid)?;
        let known = job.finished.is_some();
        let job = last.filter(|last| last.uid == uid).map_or(job, Arc::new);
        if !known {
            self.end(&job);
        }
        if let Some(policies) = self.policies.in_namespace(&job.namespace)
            && let Some(results) = marks::missed(&job, &policies.effective(&without_group_label(&job.labels)))
        {
            let group = group.as_ref().map(|(_, group)| group.value.clone());
            let events = pending_events::pending(&job, &sinks, &told);
            self.buried.put(Buried { job, results, group, events, since: Instant::now() });
        }
        Some(group)
    }

    fn end(&mut self, job: &Arc<JobSnapshot>) {
        if job.finished.is_none() {
            return;
        }
        // Nobody asks where this sink does not lead.
        if self.ended.len() >= MOST_ENDED {
            self.ended.clear();
            self.ended_more = true;
        }
        self.ended.push(job.clone());
    }

    fn drop_job(&mut self, uid: &str) -> Option<Known> {
        let known = self.jobs.remove(uid)?;
        self.unfinished.remove(uid);
        forget(&mut self.by_namespace, &known.job.namespace, uid);
        if let Some(group) = &known.group {
            forget(&mut self.groups, group, uid);
        }
        Some(known)
    }

    /// Derives a Job's group anew from its raw labels and the policies.
    fn regroup(&mut self, uid: &str) {
        let Some(known) = self.jobs.get_mut(uid) else { return };
        let said = self
            .policies
            .in_namespace(&known.job.namespace)
            .map(|policies| policies.effective(&without_group_label(&known.job.labels)));
        known.sinks = said.as_ref().map(|said| said.cloud_event_sinks.clone()).unwrap_or_default();
        let group = said.and_then(|said| {
            let spec = said.group?;
            let id = group_of(&spec.value, &without_group_label(&known.job.labels), known.job.owner.as_ref())
                .ok()?;
            Some((known.job.namespace.clone(), id))
        });
        if group == known.group {
            return;
        }
        let before = std::mem::replace(&mut known.group, group.clone());
        if let Some(before) = before {
            forget(&mut self.groups, &before, uid);
        }
        if let Some(group) = group {
            self.groups.entry(group).or_default().insert(uid.to_owned());
        }
    }

    fn regroup_all(&mut self) {
        let uids: Vec<Uid> = self.jobs.keys().cloned().collect();
        for uid in uids {
            self.regroup(&uid);
        }
    }
}

fn forget<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<Uid>>, key: &K, uid: &str) {
    if let Some(uids) = index.get_mut(key) {
        uids.remove(uid);
        if uids.is_empty() {
            index.remove(key);
        }
    }
}
