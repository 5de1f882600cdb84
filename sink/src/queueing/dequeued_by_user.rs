//! Jobs that people took out of the queue, by starting them or by taking the mark off: what these Jobs say of themselves
//! is put right.

use std::{sync::Arc, time::Duration};

use job_handler_shared::{
    job::{queued_entry, snapshot::JobSnapshot},
    keys,
};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::observe::store::Store;
use job_handler_shared::kube::error::{ApiError, call};

/// Least time between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// A look without any change, for what a watch may have missed.
const ANYWAY: Duration = Duration::from_secs(30);

/// The account of a Job that says it waits and does not; none where it is right. A Job that another manager runs, or
/// that is finished, is left alone.
pub fn account(job: &JobSnapshot) -> Option<String> {
    let text = job.annotations.get(keys::STAMPED)?;
    queued_entry::waits_for(text)?;
    if job.is_queued() || job.finished.is_some() || job.deleting_since.is_some() || job.is_managed_by_others()
    {
        return None;
    }
    let why = if job.suspended {
        format!("no longer queued: annotation {} was taken off; it stays suspended", keys::QUEUED_AT)
    } else {
        "no longer queued: started by somebody else than job-handler".to_owned()
    };
    let left = queued_entry::without_queued(text);
    Some(left.into_iter().chain([why]).collect::<Vec<_>>().join("; "))
}

/// Puts the accounts right, for ever.
pub async fn keep(client: Client, store: Store) {
    let mut changes = store.changes();
    loop {
        for job in store.jobs() {
            let Some(text) = account(&job) else { continue };
            // Outside every policy a Job is never changed, whatever it says.
            if store.matching(&job).is_none_or(|policies| policies.is_empty()) {
                continue;
            }
            match write(&client, &job, &text).await {
                Ok(()) => {}
                // The watch tells what it is now.
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => tracing::warn!(job = job.key(), "no longer queued: {error}; trying again"),
            }
        }
        tokio::time::sleep(EVERY).await;
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(ANYWAY) => {}
        }
    }
}

async fn write(client: &Client, job: &Arc<JobSnapshot>, text: &str) -> Result<(), ApiError> {
    let api = Api::<Job>::namespaced(client.clone(), &job.namespace);
    let patch = Patch::Merge(json!({"metadata": {
        "uid": job.uid,
        "resourceVersion": job.resource_version,
        "annotations": {keys::QUEUED_AT: null, keys::STAMPED: text},
    }}));
    let what = format!("put the account of job {} right", job.key());
    call(&what, api.patch(&job.name, &PatchParams::default(), &patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_job_that_says_it_waits_and_does_not_is_put_right() {
        let job = |suspended, mark: bool, text: &str| {
            let mut job = JobSnapshot { suspended, ..JobSnapshot::default() };
            job.annotations.insert(keys::STAMPED.into(), text.into());
            if mark {
                job.annotations.insert(keys::QUEUED_AT.into(), "2026-01-01T00:00:00Z".into());
            }
            job
        };
        let waits = "group: 7 (by id); queued: waits for a slot";
        assert_eq!(account(&job(true, true, waits)), None, "it waits");
        assert_eq!(account(&job(true, false, "group: 7 (by id)")), None, "its author suspended it");
        let by_hand = account(&job(true, false, waits)).unwrap();
        assert!(by_hand.starts_with("group: 7 (by id); no longer queued: annotation"), "{by_hand}");
        let started = account(&job(false, true, waits)).unwrap();
        assert!(started.ends_with("started by somebody else than job-handler"), "{started}");
        // What it says then is right.
        for text in [by_hand, started] {
            assert_eq!(account(&job(true, false, &text)), None);
        }
        let mut kueue = job(false, true, waits);
        kueue.labels.insert(keys::KUEUE_QUEUE.into(), "q".into());
        assert_eq!(account(&kueue), None);
    }
}
