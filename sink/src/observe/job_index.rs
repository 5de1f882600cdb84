//! Jobs by uid, namespace and group, and the finished ones that are gone before their result was stored.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
    time::Instant,
};

use job_handler_shared::{
    job::{group::group_of, scope::without_group_label, snapshot::JobSnapshot, trim::SpareLabels},
    policy::{effective::EffectivePolicy, index::PolicyIndex, label_keys::LabelKeys},
};

use crate::{
    jobs::result_annotations,
    model::{
        job_change::{GroupKey, JobChange, Uid},
        pending_events,
    },
    observe::tombstones::{DeletedJob, Tombstones},
};

/// Finished Jobs kept for the failure backoff to read. A sink that does not lead never reads them.
const MAX_FINISHED: usize = 2000;

type JobRules = PolicyIndex<Uid>;

/// The label keys that policies name in the namespace of a Job.
fn label_keys(rules: &JobRules, job: &JobSnapshot) -> Arc<LabelKeys> {
    rules.all().label_keys().of(&job.namespace).clone()
}

/// What the enforced policies say about a Job; None while the labels of its namespace, or those of its own labels by which
/// they judge it, are not known.
fn effective(rules: &JobRules, job: &JobSnapshot) -> Option<EffectivePolicy> {
    if !job.knows_labels(rules.all().label_keys().of(&job.namespace)) {
        return None;
    }
    Some(rules.in_namespace(&job.namespace)?.effective(&without_group_label(&job.labels)))
}

#[derive(Debug)]
pub(super) struct TrackedJob {
    pub(super) job: Arc<JobSnapshot>,
    pub(super) group: Option<GroupKey>,
    /// Receivers of CloudEvents that its policies name.
    pub(super) receivers: BTreeSet<String>,
    /// Receivers that have taken its `started` event.
    pub(super) started_delivered: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct JobIndex {
    pub(super) jobs: HashMap<Uid, TrackedJob>,
    pub(super) groups: HashMap<GroupKey, BTreeSet<Uid>>,
    pub(super) deleted: Tombstones,
    /// An index of its own, because these are few even where there are many finished Jobs.
    unfinished: BTreeSet<Uid>,
    by_namespace: HashMap<String, BTreeSet<Uid>>,
    finished: Vec<Arc<JobSnapshot>>,
    finished_overflowed: bool,
}

impl JobIndex {
    /// Stores a Job, without the labels that no policy names unless they are few.
    pub(super) fn put(&mut self, mut job: JobSnapshot, rules: &JobRules) -> JobChange {
        job.trim(&label_keys(rules, &job), SpareLabels::SOME);
        let uid = job.uid.clone();
        let before = self.jobs.remove(&uid);
        let was_finished = before.as_ref().map(|known| known.job.finished.is_some());
        let job = Arc::new(job);
        if was_finished != Some(true) {
            self.record_finished(&job);
        }
        if job.finished.is_none() {
            self.unfinished.insert(uid.clone());
        } else {
            self.unfinished.remove(&uid);
        }
        self.by_namespace.entry(job.namespace.clone()).or_default().insert(uid.clone());
        let finished_now = was_finished == Some(false) && job.finished.is_some();
        let tracked = match before {
            Some(known) => TrackedJob { job, ..known },
            None => TrackedJob {
                job,
                group: None,
                receivers: BTreeSet::new(),
                started_delivered: BTreeSet::new(),
            },
        };
        self.jobs.insert(uid.clone(), tracked);
        self.regroup(&uid, rules);
        let group = self.jobs.get(&uid).and_then(|known| known.group.clone());
        JobChange { new: was_finished.is_none(), finished_now, group }
    }

    /// Removes a Job. If its result should have been stored and was not, a tombstone keeps what is needed to report it.
    /// `last` is the Job's last state, if the watch delivered it. Returns the Job's group; None if the Job is not known.
    pub(super) fn remove(
        &mut self,
        uid: &str,
        last: Option<JobSnapshot>,
        rules: &JobRules,
    ) -> Option<Option<GroupKey>> {
        let TrackedJob { job, group, receivers, started_delivered } = self.jobs.remove(uid)?;
        self.unfinished.remove(uid);
        remove_from(&mut self.by_namespace, &job.namespace, uid);
        if let Some(group) = &group {
            remove_from(&mut self.groups, group, uid);
        }
        let was_finished = job.finished.is_some();
        let last = last.filter(|last| last.uid == uid).map(|mut last| {
            last.trim(&label_keys(rules, &last), SpareLabels::SOME);
            Arc::new(last)
        });
        let job = last.unwrap_or(job);
        if !was_finished {
            self.record_finished(&job);
        }
        let missed = effective(rules, &job)
            .and_then(|effective| result_annotations::missing_results(&job, &effective));
        if let Some(results) = missed {
            let group = group.as_ref().map(|(_, group)| group.value.clone());
            let events = pending_events::pending(&job, &receivers, &started_delivered);
            self.deleted.put(DeletedJob { job, results, group, events, since: Instant::now() });
        }
        Some(group)
    }

    fn record_finished(&mut self, job: &Arc<JobSnapshot>) {
        if job.finished.is_none() {
            return;
        }
        if self.finished.len() >= MAX_FINISHED {
            self.finished.clear();
            self.finished_overflowed = true;
        }
        self.finished.push(job.clone());
    }

    /// Jobs that finished since the last call, deleted ones included, and whether these are all.
    pub(super) fn drain_finished(&mut self) -> (Vec<Arc<JobSnapshot>>, bool) {
        let complete = !std::mem::take(&mut self.finished_overflowed);
        (std::mem::take(&mut self.finished), complete)
    }

    pub(super) fn unfinished(&self) -> impl Iterator<Item = &TrackedJob> {
        self.unfinished.iter().filter_map(|uid| self.jobs.get(uid))
    }

    pub(super) fn in_namespace(&self, namespace: &str) -> Vec<Uid> {
        self.by_namespace.get(namespace).into_iter().flatten().cloned().collect()
    }

    /// Derives a Job's group and receivers again from its labels and the policies.
    pub(super) fn regroup(&mut self, uid: &str, rules: &JobRules) {
        let Some(known) = self.jobs.get_mut(uid) else { return };
        let effective = effective(rules, &known.job);
        known.receivers = effective.as_ref().map(|said| said.cloud_event_sinks.clone()).unwrap_or_default();
        let group = effective.and_then(|effective| {
            let spec = effective.group?;
            let labels = without_group_label(&known.job.labels);
            let group = group_of(&spec.value, &labels, known.job.owner.as_ref()).ok()?;
            Some((known.job.namespace.clone(), group))
        });
        if group == known.group {
            return;
        }
        let before = std::mem::replace(&mut known.group, group.clone());
        if let Some(before) = before {
            remove_from(&mut self.groups, &before, uid);
        }
        if let Some(group) = group {
            self.groups.entry(group).or_default().insert(uid.to_owned());
        }
    }

    pub(super) fn uids(&self) -> Vec<Uid> {
        self.jobs.keys().cloned().collect()
    }

    /// Whether the policies name labels that were dropped from a Job.
    pub(super) fn lacks_labels(&self, uid: &str, rules: &JobRules) -> bool {
        let keys = rules.all().label_keys();
        self.jobs.get(uid).is_some_and(|known| !known.job.knows_labels(keys.of(&known.job.namespace)))
    }
}

fn remove_from<K: Hash + Eq>(index: &mut HashMap<K, BTreeSet<Uid>>, key: &K, uid: &str) {
    if let Some(uids) = index.get_mut(key) {
        uids.remove(uid);
        if uids.is_empty() {
            index.remove(key);
        }
    }
}
