//! Deletes the older runs of a group (`cleanup.keep`), after their results are stored.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    policy::{
        cleanup::{Keep, Propagation},
        effective::EffectivePolicy,
    },
};

use crate::{
    jobs::{
        patch::{self, Written},
        result_annotations,
    },
    model::job_change::GroupKey,
    observe::key::Key,
    prune::keep,
    queueing::failure_backoff,
    reconcile::{
        error::JobReconcileError,
        job::{JobProgress, JobReconciler},
    },
};

/// Which Jobs of a group to delete.
struct GroupPlan {
    delete: Vec<(Arc<JobSnapshot>, Propagation)>,
    /// Jobs that stay; the deletions rely on them.
    retained: Vec<Arc<JobSnapshot>>,
    /// A Job whose outcome the ledger has not recorded yet: the group is retried.
    unrecorded: Option<String>,
}

impl JobReconciler {
    /// Deletes the older runs of a group.
    ///
    /// # Errors
    /// If a Job has changed or a call fails; the group is retried.
    pub async fn reconcile_group(&self, key: &GroupKey) -> Result<(), JobReconcileError> {
        let jobs = self.store.group(key);
        let policies: HashMap<String, EffectivePolicy> =
            jobs.iter().filter_map(|job| Some((job.uid.clone(), self.store.effective(job)?))).collect();
        let Some(plan) = self.plan_group(&jobs, &policies) else { return Ok(()) };
        if plan.delete.is_empty() {
            return plan.unrecorded.map_or(Ok(()), |job| Err(JobReconcileError::Changed(job)));
        }
        for job in &plan.retained {
            match patch::get_current(&self.client, job).await? {
                Some(current) if current.deleting_since.is_none() => {}
                // The watch cache is stale.
                _ => return Err(JobReconcileError::Changed(job.key())),
            }
        }
        let mut failure = plan.unrecorded.map(JobReconcileError::Changed);
        for (job, propagation) in plan.delete {
            let before = policies.get(&job.uid).map(relevant_fields);
            if before.is_some_and(|(wants_result, _)| wants_result) && !self.is_result_stored(&job).await? {
                self.queue.add(Key::Job(job.uid.clone()));
                continue;
            }
            // A policy may have changed during the calls since then.
            if before != self.store.effective(&job).as_ref().map(relevant_fields) {
                return Err(JobReconcileError::Changed(job.key()));
            }
            match patch::delete(&self.client, &job, propagation, false).await {
                Ok(Written::Done(_)) => {
                    self.metrics.pruned();
                    tracing::info!(job = job.key(), group = key.1.value, "pruned: newer runs exist");
                }
                Ok(Written::Gone) => {}
                Ok(Written::Changed) => failure = Some(JobReconcileError::Changed(job.key())),
                Err(error) => failure = Some(error.into()),
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// None where no policy of the group sets `cleanup.keep`.
    fn plan_group(
        &self,
        jobs: &[Arc<JobSnapshot>],
        policies: &HashMap<String, EffectivePolicy>,
    ) -> Option<GroupPlan> {
        // Of several policies, the larger numbers apply.
        let keep = policies.values().filter_map(keep_of).reduce(|a, b| Keep {
            newest: a.newest.max(b.newest),
            newest_succeeded: a.newest_succeeded.max(b.newest_succeeded),
        })?;
        let (surplus, kept) = keep::plan(jobs.iter().map(AsRef::as_ref), keep);
        let by_uid: HashMap<&str, &Arc<JobSnapshot>> =
            jobs.iter().map(|job| (job.uid.as_str(), job)).collect();
        let retained =
            kept.iter().filter_map(|ranked| by_uid.get(ranked.uid.as_str()).map(|job| (*job).clone()));
        let mut plan = GroupPlan { delete: Vec::new(), retained: retained.collect(), unrecorded: None };
        for ranked in &surplus {
            let found = by_uid.get(ranked.uid.as_str()).zip(policies.get(ranked.uid.as_str()));
            let Some((job, policy)) = found else { continue };
            let Some(cleanup) = policy.cleanup.as_ref().filter(|cleanup| cleanup.keep.is_some()) else {
                continue;
            };
            if !failure_backoff::is_recorded(&self.store, job, Timestamp::now()) {
                plan.unrecorded = Some(job.key());
                continue;
            }
            let results = self.store.results_of(job);
            let announced = !results.is_empty() && results.iter().all(|result| !result.pending);
            match keep::check_deletable(
                job,
                policy.results.is_none() || announced || result_annotations::is_result_removed(job),
            ) {
                Ok(()) => plan.delete.push(((*job).clone(), cleanup.propagation_policy)),
                Err(why) => tracing::debug!(job = job.key(), "not pruned: {why}"),
            }
        }
        Some(plan)
    }

    /// Whether the result is there, or was stored once and removed by retention.
    async fn is_result_stored(&self, job: &JobSnapshot) -> Result<bool, JobReconcileError> {
        let results = self.store.results_of(job);
        if result_annotations::is_result_removed(job) && results.is_empty() {
            return Ok(true);
        }
        let mut progress = JobProgress { results, job: job.clone() };
        Ok(self.verify_result(&mut progress).await?.is_some())
    }
}

fn keep_of(policy: &EffectivePolicy) -> Option<Keep> {
    policy.cleanup.as_ref()?.keep
}

/// Whether the policy wants a result, and how many runs it keeps.
fn relevant_fields(policy: &EffectivePolicy) -> (bool, Option<Keep>) {
    (policy.results.is_some(), keep_of(policy))
}
