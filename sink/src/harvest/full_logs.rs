//! Uploads and deletes the full logs of a Job.

use std::collections::BTreeSet;

use futures::StreamExt;
use job_handler_shared::{job::snapshot::JobSnapshot, result::manifest::ObjectsFacts};
use tokio::time::Instant;

use crate::{
    harvest::{
        captured::{CapturedLog, CapturedPod, CapturedPods},
        collector::Collector,
        log_buffer::LogExcerpt,
        tuning::PODS_AT_A_TIME,
    },
    object_store::{FullLog, FullLogStore, LogKey},
};

impl Collector {
    /// Deletes the objects of an earlier attempt of a harvest whose result is stored now.
    pub(crate) async fn remove_stale_objects(&self, job: &JobSnapshot, kept: &BTreeSet<String>) {
        let Some(store) = self.reader.store().filter(|_| !kept.is_empty()) else { return };
        if let Err(error) = store.remove_all_but(&job.namespace, &job.uid, kept).await {
            tracing::debug!("objects of an earlier attempt remain as long as the result: {error}");
        }
    }

    /// Deletes a Job's objects again; the garbage collector deletes what remains.
    pub(crate) async fn remove_objects(&self, job: &JobSnapshot, captured: &mut CapturedPods) {
        let Some(store) = self.reader.store().filter(|_| captured.objects.take().is_some()) else {
            return;
        };
        let logs = captured.pods.iter_mut().flat_map(|pod| &mut pod.logs);
        logs.for_each(|log| log.excerpt.full = FullLog::Absent);
        captured.update_facts();
        if let Err(error) = store.remove(&job.namespace, &job.uid).await {
            tracing::warn!("full logs that must not be stored remain for now: {error}");
        }
    }

    /// Uploads the spooled logs of a Job.
    pub(crate) async fn upload_full_logs(&self, job: (&str, &str), captured: &mut CapturedPods) {
        let Some(store) = self.reader.store() else { return };
        let deadline = store.deadline();
        let mut uploads = Vec::new();
        for CapturedPod { facts, logs, .. } in &mut captured.pods {
            uploads.extend(logs.iter_mut().map(|log| upload(log, store, job, &facts.name, deadline)));
        }
        futures::stream::iter(uploads).buffer_unordered(PODS_AT_A_TIME).collect::<()>().await;
        captured.update_facts();
        let logs = captured.pods.iter().flat_map(|pod| &pod.logs);
        let mut failed = logs.filter_map(|log| match &log.excerpt.full {
            FullLog::Failed(reason) => Some(reason),
            _ => None,
        });
        if let Some(reason) = failed.next() {
            let logs = 1 + failed.count();
            tracing::warn!(logs, "truncated logs, because storing the full logs failed: {reason}");
        }
        let (count, bytes) =
            captured.full_logs().fold((0, 0), |(count, bytes), object| (count + 1, bytes + object.bytes));
        let url = store.folder_url(job.0, job.1);
        captured.objects = (count > 0).then_some(ObjectsFacts { url, count, bytes });
    }
}

async fn upload(
    log: &mut CapturedLog,
    store: &FullLogStore,
    job: (&str, &str),
    pod: &str,
    deadline: Instant,
) {
    let key = LogKey { pod, container: &log.container, previous: log.previous, run_id: &log.run_id };
    let stored = match &log.excerpt.full {
        FullLog::Spooled(spooled) => store.put(job, key, spooled, deadline).await,
        FullLog::Failed(reason) => {
            store.count_failure();
            Err(reason.clone())
        }
        FullLog::Absent | FullLog::Stored(_) => return,
    };
    log.excerpt.full = match stored {
        Ok(object) => FullLog::Stored(object),
        Err(reason) => {
            let failed = format!("the full log could not be stored: {reason}");
            let before = log.lost.take().map_or(String::new(), |lost| format!("{lost}; "));
            log.lost = Some(before + &failed);
            FullLog::Failed(reason)
        }
    };
}

/// Shortens a log to `max` bytes; spools it before if it is complete until now.
pub(crate) async fn shorten(excerpt: &mut LogExcerpt, max: usize, store: Option<&FullLogStore>) {
    if let Some(store) = store
        && excerpt.left_out() == 0
        && excerpt.bytes() > max
    {
        excerpt.full = store.spool().spool(&excerpt.head).await;
    }
    excerpt.shrink(max);
}
