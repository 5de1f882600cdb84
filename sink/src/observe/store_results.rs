//! The store's part about results: where they are, and which announcements of them are pending.

use std::collections::BTreeSet;

use job_handler_shared::{job::snapshot::JobSnapshot, names, result::pending_events::PendingEvents};

use crate::{
    model::{job_change::Uid, pending_events, result_ref::ResultRef},
    observe::{
        job_index::TrackedJob,
        store::{Effect, Store},
    },
};

impl Store {
    /// Adds or replaces the place of a Job's result.
    pub fn put_result(&self, job: &str, mut result: ResultRef) {
        self.update(|state| {
            let places = state.results.entry(job.to_owned()).or_default();
            let known = places.iter().find(|known| known.is_at(&result)).cloned();
            if let Some(known) = known {
                places.remove(&known);
                // The writer of a result knows less of it than the watch has delivered.
                if result.bytes == 0 {
                    (result.bytes, result.lost, result.policies) = (known.bytes, known.lost, known.policies);
                }
            }
            let changed = !result.outbox.is_empty() || result.bytes > 0;
            places.insert(result);
            ((), changed.into())
        });
    }

    /// Removes results for which `is_gone` holds, given the Job's uid and the place.
    pub fn remove_results(&self, is_gone: impl Fn(&str, &ResultRef) -> bool) {
        self.update(|state| {
            state.results.retain(|uid, places| {
                places.retain(|place| !is_gone(uid, place));
                !places.is_empty()
            });
            ((), Effect::Changed)
        });
    }

    /// Where the result of a Job is, by the metadata of objects with a name for it; the caller reads it before acting on
    /// it. Copies under other names are not results.
    pub(crate) fn places(&self, job: &JobSnapshot) -> Vec<ResultRef> {
        let own = [names::result_name(&job.name), names::result_name_with_uid(&job.name, &job.uid)];
        let mut places = self.places_of(&job.uid);
        places.retain(|place| place.namespace == job.namespace && own.contains(&place.name));
        places
    }

    /// All places of results by the Job's uid; the Job may be deleted.
    pub(crate) fn places_of(&self, uid: &str) -> Vec<ResultRef> {
        self.state.lock().results.get(uid).into_iter().flatten().cloned().collect()
    }

    pub(crate) fn results(&self) -> Vec<ResultRef> {
        self.state.lock().results.values().flatten().cloned().collect()
    }

    /// Uids of all Jobs, deleted ones included, whose result has pending Events.
    pub(crate) fn pending_results(&self) -> Vec<Uid> {
        let state = self.state.lock();
        let pending = state.results.iter().filter(|(_, places)| places.iter().any(|place| place.pending));
        pending.map(|(uid, _)| uid.clone()).collect()
    }

    /// Uids of the enforced policies that ask for this Job's result.
    pub(crate) fn requesting_policies(&self, job: &JobSnapshot) -> Vec<String> {
        let policies = self.matching(job).unwrap_or_default();
        let requesting = policies.into_iter().filter(|policy| policy.spec.results.is_some());
        requesting.map(|policy| policy.reference.uid.clone()).collect()
    }

    /// Uids of the Jobs, deleted ones included, with CloudEvents that this receiver has yet to take.
    pub(crate) fn jobs_with_pending_events(&self, receiver: &str) -> Vec<Uid> {
        let state = self.state.lock();
        let named = |place: &ResultRef| place.outbox.iter().any(|name| name == receiver);
        let of_results =
            state.results.iter().filter(|(_, places)| places.iter().any(named)).map(|(uid, _)| uid);
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

    /// Records that a receiver has taken the `started` event of a Job.
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
        let policy = state.entries.get(policy).and_then(|entry| entry.policy.as_ref().ok());
        policy.map_or_else(Vec::new, |policy| {
            policy.spec.cloud_event_sinks.iter().map(|sink| sink.name.clone()).collect()
        })
    }
}
