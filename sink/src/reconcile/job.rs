//! Brings one Job to the end of its sequence: harvest, mark, announce, delete.
//!
//! [`plan::next_step`] decides each step from the Job, the policies and what is stored, and runs again after each: a step
//! can take a minute, and a user may edit the Job or a policy meanwhile.

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    policy::{
        cleanup::Propagation,
        results::{Results, StorageType},
    },
};
use kube::Client;
use tracing::{Instrument, info_span};

pub use crate::reconcile::error::JobReconcileError;
use crate::{
    harvest::{collector::Collector, pod_tracker::PodTracker},
    jobs::{
        patch::{self, Written},
        plan::{self, Step},
        result_annotations,
    },
    metrics::SinkMetrics,
    model::result_ref::ResultRef,
    notify::{recorder::Recorder, result_events},
    observe::{key::Key, store::Store},
    queueing::failure_backoff,
    reconcile::log_retry::LogRetries,
    result::lookup::{self, CommittedResult},
    runtime::work_queue::Queue,
};

/// Most steps before the Job is put back into the queue. The sequence has four; more are Jobs that keep changing.
const MAX_STEPS: usize = 12;

/// What is known about a Job during its reconcile, ahead of the watch.
pub(crate) struct JobProgress {
    pub(crate) job: JobSnapshot,
    /// Where its results are.
    pub(crate) results: Vec<ResultRef>,
}

/// How a step ended.
enum StepEnd {
    /// The Job is unchanged.
    Unchanged,
    /// The Job was written, has changed, or is gone.
    Written(Written),
    /// Nothing is left to do.
    Finished,
}

/// Reconciles Jobs and groups; the leader has one.
#[derive(Clone)]
pub struct JobReconciler {
    /// Calls the apiserver.
    pub client: Client,
    /// The watch caches.
    pub store: Store,
    /// The keys to reconcile.
    pub queue: Queue<Key>,
    /// Captures pods and logs.
    pub collector: Collector,
    /// Pods that are followed, and what was captured of deleted ones.
    pub pod_tracker: PodTracker,
    /// Jobs that wait for their logs.
    pub log_retries: LogRetries,
    /// Writes Events.
    pub recorder: Recorder,
    /// Counts outcomes.
    pub metrics: SinkMetrics,
}

impl JobReconciler {
    /// Reconciles a Job, existing or deleted.
    ///
    /// # Errors
    /// If a step fails; the retry begins with that step.
    pub async fn reconcile_job(&self, uid: &str) -> Result<(), JobReconcileError> {
        let Some(job) = self.store.job(uid) else { return self.reconcile_deleted_job(uid).await };
        let mut progress = JobProgress { results: self.store.results_of(&job), job: (*job).clone() };
        for _ in 0..MAX_STEPS {
            let Some(effective) = self.store.effective(&progress.job) else { return Ok(()) };
            let Some(step) = plan::next_step(&progress.job, &effective, &progress.results) else {
                return Ok(());
            };
            let span = info_span!("step", step = step_name(&step));
            let written = match self.run_step(step, &mut progress).instrument(span).await? {
                StepEnd::Unchanged => continue,
                StepEnd::Finished => return Ok(()),
                StepEnd::Written(written) => written,
            };
            let current = match written {
                Written::Done(now) => Some(*now),
                Written::Changed => patch::get_current(&self.client, &progress.job).await?,
                Written::Gone => None,
            };
            match current {
                Some(now) => progress.job = now,
                // The Events about its stored result are still written.
                None => return self.announce(uid, &mut progress.results).await,
            }
        }
        Err(JobReconcileError::Changed(progress.job.key()))
    }

    async fn run_step(&self, step: Step, progress: &mut JobProgress) -> Result<StepEnd, JobReconcileError> {
        match step {
            Step::Harvest(results) if self.may_be_in_unreadable_secret(&progress.job, &results) => {
                Ok(StepEnd::Finished)
            }
            Step::Harvest(_) if self.log_retries.is_waiting(&progress.job.uid) => Ok(StepEnd::Finished),
            Step::Harvest(results) => {
                let group = self.store.group_of(&progress.job.uid).map(|(_, group)| group.value);
                match self.harvest(&progress.job, &results, group.as_deref(), false).await {
                    Err(JobReconcileError::LogsPending(pending)) => {
                        self.postpone_harvest(&progress.job, &results, &pending).await;
                        return Ok(StepEnd::Finished);
                    }
                    stored => progress.results = vec![stored?],
                }
                // Waiting for logs takes long enough for others to change the Job.
                Ok(StepEnd::Written(Written::Changed))
            }
            Step::Mark(ttl) => match (self.verify_result(progress).await?, &progress.job.finished) {
                (Some(result), Some(finished)) => {
                    let outcome = finished.outcome;
                    let written =
                        patch::mark_harvested(&self.client, &progress.job, outcome, &result.name, ttl)
                            .await?;
                    Ok(StepEnd::Written(written))
                }
                _ => Ok(StepEnd::Unchanged),
            },
            Step::Announce => {
                self.announce(&progress.job.uid, &mut progress.results).await?;
                Ok(StepEnd::Unchanged)
            }
            Step::Delete => self.delete(progress).await,
            // An unreadable policy may ask for the result.
            Step::Restore(_) if self.store.has_unreadable_policy(&progress.job.namespace) => {
                Ok(StepEnd::Finished)
            }
            Step::Restore(ttl) => {
                Ok(StepEnd::Written(patch::restore_ttl(&self.client, &progress.job, ttl).await?))
            }
        }
    }

    async fn delete(&self, progress: &mut JobProgress) -> Result<StepEnd, JobReconcileError> {
        // The group's failure backoff depends on the outcome, which is recorded within a moment.
        if !failure_backoff::is_recorded(&self.store, &progress.job, Timestamp::now()) {
            return Err(JobReconcileError::Changed(progress.job.key()));
        }
        if self.verify_result(progress).await?.is_none() {
            return Ok(StepEnd::Unchanged);
        }
        // A policy may have changed while the result was read.
        let effective = self.store.effective(&progress.job);
        let next = effective.and_then(|now| plan::next_step(&progress.job, &now, &progress.results));
        if next != Some(Step::Delete) {
            return Ok(StepEnd::Unchanged);
        }
        let deleted = patch::delete(&self.client, &progress.job, Propagation::Background, false).await?;
        if let Written::Done(_) = deleted {
            tracing::info!(job = progress.job.key(), "deleted the Job after its harvest");
            return Ok(StepEnd::Finished);
        }
        Ok(StepEnd::Written(deleted))
    }

    /// Reads the stored result, because labels can be forged or outlive their content: it proves the harvest if it has the
    /// sink's seal, or if the sink recorded it on the Job. Drops references without one.
    pub(crate) async fn verify_result(
        &self,
        progress: &mut JobProgress,
    ) -> Result<Option<CommittedResult>, JobReconcileError> {
        let uid = &progress.job.uid;
        while let Some(result) = progress.results.first().cloned() {
            let (seal, namespace, name) = (&self.store.seal, &result.namespace, &result.name);
            let found = lookup::read_at(&self.client, seal, result.kind, namespace, name, uid).await?;
            let proves = |found: &CommittedResult| {
                found.sealed || result_annotations::is_recorded(&progress.job, name)
            };
            if let Some(found) = found.filter(proves) {
                return Ok(Some(found));
            }
            tracing::debug!(
                job = progress.job.key(),
                object = result.name,
                "labelled as a result, but is none"
            );
            self.drop_result(uid, &result);
            progress.results.remove(0);
        }
        Ok(None)
    }

    fn drop_result(&self, uid: &str, result: &ResultRef) {
        self.store.remove_results(|job, known| job == uid && known.is_at(result));
    }

    /// The Job is marked, and its result may be in a Secret that the sink may not read: it is neither lost nor to be
    /// stored again. The sink waits for the permission.
    fn may_be_in_unreadable_secret(&self, job: &JobSnapshot, results: &Results) -> bool {
        results.storage_type == StorageType::Secret
            && !self.store.secrets.is_allowed()
            && result_annotations::is_harvested(job)
    }

    /// Writes the pending Events about these results.
    async fn announce(&self, uid: &str, results: &mut Vec<ResultRef>) -> Result<(), JobReconcileError> {
        for result in std::mem::take(results) {
            if !result.pending {
                results.push(result);
                continue;
            }
            let (namespace, name) = (&result.namespace, &result.name);
            let seal = &self.store.seal;
            let found = lookup::read_sealed(&self.client, seal, result.kind, namespace, name, uid).await?;
            let Some(found) = found else {
                // The watch is behind, or the result was deleted: there is nothing to announce.
                self.drop_result(uid, &result);
                continue;
            };
            result_events::publish_pending(&self.client, seal, &self.recorder, &found).await?;
            let announced = ResultRef { pending: false, ..result };
            self.store.put_result(uid, announced.clone());
            results.push(announced);
        }
        Ok(())
    }

    /// Stores what can still be captured of a deleted Job, and writes the Events about stored results.
    async fn reconcile_deleted_job(&self, uid: &str) -> Result<(), JobReconcileError> {
        if let Some(deleted) = self.store.deleted_job(uid) {
            let span = info_span!("step", step = "harvest");
            let harvest = self.harvest(&deleted.job, &deleted.results, deleted.group.as_deref(), true);
            match harvest.instrument(span).await {
                // Final: an Event reports the loss, except in a namespace that is being deleted.
                Err(error) if error.is_final() || error.is_terminating() => {
                    tracing::debug!(job = deleted.job.key(), "deleted before its result was stored: {error}");
                }
                Err(error) => {
                    self.store.renew_deleted_job(uid);
                    return Err(error);
                }
                Ok(_) => {}
            }
            self.store.forget_deleted_job(uid);
            self.pod_tracker.drop_job(uid);
            self.log_retries.forget(uid);
        }
        self.announce(uid, &mut self.store.results_of_uid(uid)).await
    }
}

fn step_name(step: &Step) -> &'static str {
    match step {
        Step::Harvest(_) => "harvest",
        Step::Mark(_) => "mark",
        Step::Announce => "announce",
        Step::Delete => "delete",
        Step::Restore(_) => "restore",
    }
}

#[cfg(test)]
mod tests;
