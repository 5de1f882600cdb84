//! Results in the store: references to them, and which of their announcements are pending.

use std::collections::BTreeSet;

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    names,
    result::{pending_events::PendingEvents, storage_kind::StorageKind},
};

use crate::{
    jobs::result_annotations,
    model::{job_change::Uid, pending_events, result_ref::ResultRef, stored_result::StoredResult},
    observe::{
        job_index::TrackedJob,
        store::{Effect, Store},
    },
};

impl Store {
    /// Adds or replaces a stored result that a watch reports.
    pub fn put_stored(&self, stored: StoredResult, result: ResultRef) {
        let uid = stored.uid.clone();
        self.inventory().put(stored);
        self.put_result(&uid, result);
    }

    /// Removes the stored result at this place; with a uid, no reference of another Job to it.
    pub(crate) fn remove_stored(&self, place: &ResultRef, uid: Option<&str>) {
        self.inventory().remove(place.kind, &place.namespace, &place.name);
        self.remove_results(|job, result| uid.is_none_or(|uid| job == uid) && result.is_at(place));
    }

    /// Removes the stored results of this kind that `is_listed` does not name, given namespace and name.
    pub(crate) fn retain_stored(&self, kind: StorageKind, is_listed: impl Fn(&str, &str) -> bool) {
        self.inventory().retain(kind, &is_listed);
        self.remove_results(|_, result| result.kind == kind && !is_listed(&result.namespace, &result.name));
    }

    /// Adds or replaces the reference to a Job's result, which this sink has written or read. A watch reports the stored
    /// result later; see [`Self::put_stored`].
    pub fn put_result(&self, job: &str, mut result: ResultRef) {
        self.update(|state| {
            let results = state.results.entry(job.to_owned()).or_default();
            let known = results.iter().find(|known| known.is_at(&result)).cloned();
            if let Some(known) = known {
                results.remove(&known);
                // The watch has delivered more fields than the writer of a result knows.
                if result.bytes == 0 {
                    (result.bytes, result.lost, result.policies) = (known.bytes, known.lost, known.policies);
                }
            }
            let changed = !result.outbox.is_empty() || result.bytes > 0;
            results.insert(result);
            ((), changed.into())
        });
    }

    /// Removes results for which `is_gone` holds, given the Job's uid and the reference.
    pub fn remove_results(&self, is_gone: impl Fn(&str, &ResultRef) -> bool) {
        self.update(|state| {
            state.results.retain(|uid, results| {
                results.retain(|result| !is_gone(uid, result));
                !results.is_empty()
            });
            ((), Effect::Changed)
        });
    }

    /// References to the result of a Job: objects in its namespace, under its names, that the sink wrote. The seal says so,
    /// or the Job itself, where the sink recorded the result (the key of the seal may be a new one). The caller reads one
    /// before acting on it.
    pub(crate) fn results_of(&self, job: &JobSnapshot) -> Vec<ResultRef> {
        let own = [names::result_name(&job.name), names::result_name_with_uid(&job.name, &job.uid)];
        let mut results: Vec<_> =
            self.state.lock().results.get(&job.uid).into_iter().flatten().cloned().collect();
        let recorded = |result: &ResultRef| result_annotations::is_recorded(job, &result.name);
        results.retain(|result| {
            result.namespace == job.namespace
                && own.contains(&result.name)
                && (result.sealed || recorded(result))
        });
        results
    }

    /// The sealed results of the Job with this uid, which may be deleted: the seal binds the uid to the Job's namespace.
    pub(crate) fn results_of_uid(&self, uid: &str) -> Vec<ResultRef> {
        let state = self.state.lock();
        let results = state.results.get(uid).into_iter().flatten();
        results.filter(|result| result.sealed).cloned().collect()
    }

    /// Whether a harvest may still write parts of the result of the Job with this uid. `has_result`: some object claims to be
    /// its result. Before the sink has recorded a result on the Job, that object may be forged.
    pub(crate) fn awaits_result(&self, namespace: &str, uid: &str, has_result: bool) -> bool {
        let awaits = |job: &JobSnapshot| {
            let is_written = has_result && result_annotations::is_harvested(job);
            !is_written && !result_annotations::is_result_removed(job)
        };
        self.job_in(namespace, uid).is_some_and(|job| awaits(&job))
            || self.deleted_job(uid).is_some_and(|deleted| deleted.job.namespace == namespace)
    }

    /// All sealed results.
    pub(crate) fn results(&self) -> Vec<ResultRef> {
        let state = self.state.lock();
        state.results.values().flatten().filter(|result| result.sealed).cloned().collect()
    }

    /// Sets the most bytes that a policy may grant the results of a namespace; None = no maximum.
    pub(crate) fn set_namespace_bytes_max(&self, max: Option<u64>) {
        self.update(|state| (state.namespace_bytes_max = max, Effect::Unchanged));
    }

    pub(crate) fn namespace_bytes_max(&self) -> Option<u64> {
        self.state.lock().namespace_bytes_max
    }

    /// Uids of all Jobs, deleted ones included, whose result has pending Events.
    pub(crate) fn pending_results(&self) -> Vec<Uid> {
        let state = self.state.lock();
        let pending = state.results.iter().filter(|(_, results)| results.iter().any(|result| result.pending));
        pending.map(|(uid, _)| uid.clone()).collect()
    }

    /// Uids of the enforced policies that request this Job's result.
    pub(crate) fn requesting_policies(&self, job: &JobSnapshot) -> Vec<String> {
        let policies = self.matching(job).unwrap_or_default();
        let requesting = policies.into_iter().filter(|policy| policy.spec.results.is_some());
        requesting.map(|policy| policy.reference.uid.clone()).collect()
    }

    /// Uids of the Jobs, deleted ones included, with CloudEvents that this receiver has not received yet.
    pub(crate) fn jobs_with_pending_events(&self, receiver: &str) -> Vec<Uid> {
        let state = self.state.lock();
        let named = |result: &ResultRef| result.outbox.iter().any(|name| name == receiver);
        let of_results =
            state.results.iter().filter(|(_, results)| results.iter().any(named)).map(|(uid, _)| uid);
        let running = |known: &TrackedJob| {
            known.job.started.is_some()
                && known.job.finished.is_none()
                && known.receivers.contains(receiver)
                && !known.started_delivered.contains(receiver)
        };
        let of_jobs = state.index.jobs.iter().filter(|(_, known)| running(known)).map(|(uid, _)| uid);
        let both: BTreeSet<&Uid> = of_results.chain(of_jobs).collect();
        both.into_iter().cloned().collect()
    }

    /// Records that the `started` event of a Job was delivered to a receiver.
    pub(crate) fn set_started_delivered(&self, uid: &str, receiver: &str) {
        self.update(|state| {
            if let Some(known) = state.index.jobs.get_mut(uid) {
                known.started_delivered.insert(receiver.to_owned());
            }
            ((), Effect::Unchanged)
        });
    }

    /// CloudEvents to record as pending in the result of a Job that has finished.
    pub(crate) fn events_of(&self, job: &JobSnapshot) -> PendingEvents {
        let state = self.state.lock();
        match (state.index.jobs.get(&job.uid), state.index.deleted.get(&job.uid)) {
            (Some(known), _) => pending_events::pending(job, &known.receivers, &known.started_delivered),
            (None, Some(deleted)) => deleted.events.clone(),
            (None, None) => PendingEvents::new(),
        }
    }

    /// The receivers of CloudEvents that a policy names.
    pub(crate) fn receivers_of(&self, policy: &str) -> Vec<String> {
        let state = self.state.lock();
        state.rules.get(&policy.to_owned()).map_or_else(Vec::new, |policy| {
            policy.spec.cloud_event_sinks.iter().map(|sink| sink.name.clone()).collect()
        })
    }
}
