//! Corrects the `stamped` annotation of Jobs that a user took out of the queue, by un-suspending them or by removing
//! the queue annotation.

use std::{convert::Infallible, sync::Arc, time::Duration};

use job_handler_shared::{
    job::{queued_entry, snapshot::JobSnapshot},
    keys,
    kube::error::ApiError,
};
use kube::Client;
use serde_json::json;

use crate::{jobs::patch, observe::store::Store, runtime::resync::RESYNC};

/// Least time between two rounds.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// The corrected annotation of a Job that says it is queued and is not, or None. Jobs of another
/// queue manager and finished Jobs are not changed.
fn corrected_annotation(job: &JobSnapshot) -> Option<String> {
    let text = job.annotations.get(keys::STAMPED)?;
    queued_entry::waits_for(text)?;
    if job.is_queued() || job.finished.is_some() || job.deleting_since.is_some() || job.is_managed_by_others()
    {
        return None;
    }
    let why = if job.suspended {
        format!("no longer queued: annotation {} was removed; the Job stays suspended", keys::QUEUED_AT)
    } else {
        "no longer queued: un-suspended by someone other than job-handler".to_owned()
    };
    let rest = queued_entry::without_queued(text);
    Some(rest.into_iter().chain([why]).collect::<Vec<_>>().join("; "))
}

/// Corrects the annotations until it is dropped.
pub(crate) async fn run(client: Client, store: Store) -> Infallible {
    let mut changes = store.changes();
    loop {
        for job in store.jobs() {
            let Some(text) = corrected_annotation(&job) else { continue };
            // Jobs outside every policy are never changed, whatever their annotations say.
            if store.matching(&job).is_none_or(|policies| policies.is_empty()) {
                continue;
            }
            match write(&client, &job, &text).await {
                Ok(()) => {}
                // The watch reports the current version.
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => {
                    tracing::warn!(job = job.key(), "cannot correct a dequeued Job: {error}; retrying");
                }
            }
        }
        tokio::time::sleep(MIN_INTERVAL).await;
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(RESYNC) => {}
        }
    }
}

async fn write(client: &Client, job: &Arc<JobSnapshot>, text: &str) -> Result<(), ApiError> {
    let corrected = json!({"metadata": {
        "uid": job.uid,
        "resourceVersion": job.resource_version,
        "annotations": {keys::QUEUED_AT: null, keys::STAMPED: text},
    }});
    let what = format!("correct the annotations of job {}", job.key());
    patch::merge(client, job, &what, corrected).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_job_that_says_it_is_queued_and_is_not_is_corrected() {
        let job = |suspended, mark: bool, text: &str| {
            let mut job = JobSnapshot { suspended, ..JobSnapshot::default() };
            job.annotations.insert(keys::STAMPED.into(), text.into());
            if mark {
                job.annotations.insert(keys::QUEUED_AT.into(), "2026-01-01T00:00:00Z".into());
            }
            job
        };
        let queued = "group: 7 (by id); queued: waits for a slot";
        assert_eq!(corrected_annotation(&job(true, true, queued)), None, "it is queued");
        assert_eq!(
            corrected_annotation(&job(true, false, "group: 7 (by id)")),
            None,
            "its author suspended it"
        );
        let unmarked = corrected_annotation(&job(true, false, queued)).unwrap();
        assert!(unmarked.starts_with("group: 7 (by id); no longer queued: annotation"), "{unmarked}");
        let started = corrected_annotation(&job(false, true, queued)).unwrap();
        assert!(started.ends_with("un-suspended by someone other than job-handler"), "{started}");
        for text in [unmarked, started] {
            assert_eq!(corrected_annotation(&job(true, false, &text)), None, "corrected once");
        }
        let mut kueue = job(false, true, queued);
        kueue.labels.insert(keys::KUEUE_QUEUE.into(), "q".into());
        assert_eq!(corrected_annotation(&kueue), None);
    }
}
