//! The harvest step: captures pods and logs of a Job and stores the result.

use std::collections::BTreeSet;

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    policy::results::{Results, StorageType},
};

use crate::{
    harvest::{pack, redact},
    model::{result_ref::ResultRef, stored_result},
    notify::result_events,
    observe::key::Key,
    reconcile::{error::JobReconcileError, job::JobReconciler},
    result::{
        lookup::{self, CommittedResult},
        packed::Packed,
        writer::{self, CommitError},
    },
    runtime::concurrency::without_permit,
};

/// A packed result that is not stored yet.
struct Capture {
    packed: Packed,
    /// URLs of the logs that were uploaded to the object store.
    objects: BTreeSet<String>,
    /// What containers wrote was left out for lack of permission on Secrets.
    withheld: bool,
}

impl JobReconciler {
    /// Captures the Job and stores its result, unless it is stored already. `gone`: the Job is deleted.
    pub(super) async fn harvest(
        &self,
        job: &JobSnapshot,
        results: &Results,
        group: Option<&str>,
        gone: bool,
    ) -> Result<ResultRef, JobReconcileError> {
        let secrets = self.store.secrets.is_allowed();
        let seal = &self.store.seal;
        let found = lookup::find(&self.client, seal, &job.namespace, &job.name, &job.uid, secrets).await?;
        let committed = match found {
            Some(found) => found,
            // On the heap: the future is large, and most reconciles do not need it.
            None => Box::pin(self.store_result(job, results, group, gone)).await?,
        };
        let pending = !committed.manifest.announcements_pending.is_empty();
        let result = ResultRef {
            namespace: job.namespace.clone(),
            name: committed.name,
            kind: committed.kind,
            sealed: committed.sealed,
            pending,
            outbox: committed.manifest.cloud_events_pending.keys().cloned().collect(),
            ..ResultRef::default()
        };
        self.store.put_result(&job.uid, result.clone());
        self.pod_tracker.drop_job(&job.uid);
        self.log_retries.forget(&job.uid);
        Ok(result)
    }

    async fn store_result(
        &self,
        job: &JobSnapshot,
        results: &Results,
        group: Option<&str>,
        gone: bool,
    ) -> Result<CommittedResult, JobReconcileError> {
        let secrets = self.store.secrets.is_allowed();
        let capture = self.capture(job, results, group, secrets, gone).await?;
        let Capture { mut packed, objects, withheld } = capture;
        packed.requesting_policies =
            stored_result::requesting_policies(&self.store.matching(job).unwrap_or_default());
        packed.manifest.cloud_events_pending = self.store.events_of(job);
        packed.policy_uids = self.store.requesting_policies(job);
        let completeness = &mut packed.manifest.completeness;
        if gone && !completeness.lost.is_empty() {
            completeness.lost.push("the Job was deleted before its result was stored".to_owned());
        }
        match writer::commit(&self.client, &self.store.seal, packed, secrets).await {
            Ok(committed) => {
                self.queue.record_lane_success(&Key::Job(job.uid.clone()));
                if committed.fresh {
                    without_permit(self.collector.remove_stale_objects(job, &objects)).await;
                    self.count(&committed, withheld);
                    tracing::info!(job = job.key(), result = committed.name, "stored the result");
                }
                Ok(committed)
            }
            Err(error) => {
                if is_lost(&error) {
                    self.metrics.result_lost(if gone { "gone" } else { "refused" });
                    result_events::publish_lost(&self.recorder, job, &error.to_string(), gone).await?;
                }
                Err(error.into())
            }
        }
    }

    /// Captures pods and logs. Without permission to store a requested Secret, the result goes to a ConfigMap
    /// without anything that containers wrote. Fails while the Job is to be kept for a log that cannot be read for now.
    async fn capture(
        &self,
        job: &JobSnapshot,
        results: &Results,
        group: Option<&str>,
        secrets: bool,
        gone: bool,
    ) -> Result<Capture, JobReconcileError> {
        let withheld =
            |wanted| (wanted == StorageType::Secret && !secrets).then(|| self.store.secrets.denial());
        let mut logs = results.logs.clone();
        if withheld(results.storage_type).is_some() {
            logs = redact::without_logs(&logs);
        }
        // Readers of the object store need no permission on Secrets.
        let collector = match results.storage_type {
            StorageType::Secret => self.collector.clone().with_objects(None),
            StorageType::ConfigMap => self.collector.clone(),
        };
        let capture = collector.collect(job, &logs, &self.pod_tracker);
        let (mut captured, _memory) = without_permit(capture).await?;
        let pending = captured.pending_logs().filter(|_| !gone);
        if let Some(pending) = pending.filter(|pending| self.waits_for_logs(job, results, pending)) {
            self.pod_tracker.keep_logs(captured.pods, logs.per_job());
            return Err(JobReconcileError::LogsPending(pending));
        }
        without_permit(collector.upload_full_logs((&job.namespace, &job.uid), &mut captured)).await;
        // A policy may have asked for a Secret while the logs were read.
        let now = self.store.effective(job).and_then(|now| now.results.map(|results| results.storage_type));
        let wanted =
            if now == Some(StorageType::Secret) { StorageType::Secret } else { results.storage_type };
        if wanted == StorageType::Secret {
            without_permit(self.collector.remove_objects(job, &mut captured)).await;
        }
        let objects = captured.object_urls();
        let withheld = withheld(wanted);
        if withheld.is_some() {
            logs = redact::without_logs(&logs);
            redact::redact(&mut captured);
        }
        let Some(mut packed) = pack::pack(job, group, captured, &logs) else {
            return Err(JobReconcileError::Changed(job.key()));
        };
        match &withheld {
            Some(why) => {
                packed.withhold(why.as_deref().unwrap_or("the permissions on Secrets are not known yet"));
            }
            None => packed.kind = wanted.into(),
        }
        if wanted == StorageType::Secret {
            packed.manifest.public_line = Some(redact::public_line(job, &packed.manifest.pods));
        }
        Ok(Capture { packed, objects, withheld: withheld.is_some() })
    }

    fn count(&self, committed: &CommittedResult, withheld: bool) {
        let manifest = &committed.manifest;
        let lag = Timestamp::now().duration_since(manifest.job.finished).as_secs_f64();
        self.metrics.harvested(manifest.outcome, &manifest.completeness, lag);
        if withheld {
            self.metrics.result_withheld();
        }
        let containers = manifest.pods.iter().flat_map(|pod| &pod.containers);
        self.metrics.restarts(containers.map(|c| c.restart_count).max().unwrap_or_default());
        manifest.cause.into_iter().for_each(|cause| self.metrics.job_failed(cause));
    }
}

/// The result cannot be stored as things are, which users must know.
fn is_lost(error: &CommitError) -> bool {
    match error {
        CommitError::Api(api) => api.is_rejected() && !api.is_terminating(),
        CommitError::NamesTaken { .. } => true,
        CommitError::Conflicts(_) | CommitError::Json(..) => false,
    }
}
