//! Writes the Events about a stored result, then clears them from the manifest.
//!
//! The manifest lists pending Events before any is written, and holds all that they say: after a crash, even of a Job
//! that is gone, the next leader writes them. A crash between the Event and the manifest causes a second attempt, which
//! finds the Event by its name (derived from the Job's uid and the reason). Events expire (apiserver `--event-ttl`, one
//! hour by default): only if no sink runs for that long within this window, the Event is written a second time, after
//! the first is gone.

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    keys,
    kube::error::ApiError,
    names,
    result::{manifest::Manifest, storage_kind::StorageKind},
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;

use crate::{
    notify::recorder::{EventSpec, EventType, NOTE_MAX, Recorder, job_reference},
    result::{lookup::CommittedResult, manifest_update::update_manifest, seal::Seal},
};

/// Writes the pending Events, then clears them from the manifest. Returns how many were new.
pub(crate) async fn publish_pending(
    client: &Client,
    seal: &Seal,
    recorder: &Recorder,
    committed: &CommittedResult,
) -> Result<usize, ApiError> {
    let mut written = 0;
    for reason in &committed.manifest.announcements_pending {
        let Some(event) = event(&committed.manifest, committed.kind, &committed.name, reason) else {
            tracing::warn!(
                reason,
                result = committed.name,
                "skipped an Event that this version does not know"
            );
            continue;
        };
        match recorder.publish(&event).await {
            Ok(new) => written += usize::from(new),
            // A namespace that is being deleted takes no Events.
            Err(error) if error.is_terminating() || error.is_not_found() => return Ok(written),
            Err(error) => return Err(error),
        }
    }
    clear_pending(client, seal, committed).await?;
    Ok(written)
}

async fn clear_pending(client: &Client, seal: &Seal, committed: &CommittedResult) -> Result<(), ApiError> {
    let clear = |manifest: &mut Manifest| !std::mem::take(&mut manifest.announcements_pending).is_empty();
    update_manifest(client, seal, committed, clear).await
}

fn event(manifest: &Manifest, storage: StorageKind, result: &str, reason: &str) -> Option<EventSpec> {
    let job = &manifest.job;
    let regarding = job_reference(&job.namespace, &job.name, Some(&job.uid));
    let related = Some(ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(storage.kind().to_owned()),
        namespace: Some(job.namespace.clone()),
        name: Some(result.to_owned()),
        ..ObjectReference::default()
    });
    let (kind, reason, action, note) = match reason {
        keys::REASON_PROCESSING => {
            let (kind, action) = match manifest.outcome {
                Outcome::Completed => (EventType::Normal, "Completed"),
                Outcome::Failed => (EventType::Warning, "Failed"),
            };
            (kind, keys::REASON_PROCESSING, action, manifest.note(storage, result, NOTE_MAX))
        }
        keys::REASON_NAME_TAKEN => {
            let taken = names::result_name(&job.name);
            let note = format!(
                "{0} {1}/{taken} exists and does not belong to job-handler; the result is stored in {0} {result} instead",
                storage.kind(),
                job.namespace
            );
            (EventType::Warning, keys::REASON_NAME_TAKEN, "Stored", note)
        }
        _ => return None,
    };
    Some(EventSpec {
        namespace: job.namespace.clone(),
        name: names::event_name(&job.name, &job.uid, reason),
        event_type: kind,
        reason,
        action,
        note,
        regarding,
        related,
    })
}

/// Reports that a result is not stored yet, because logs cannot be read for now; they count as lost at `lost_at`.
pub(crate) async fn publish_delayed(
    recorder: &Recorder,
    job: &JobSnapshot,
    missing: &str,
    lost_at: Timestamp,
) -> Result<bool, ApiError> {
    let note = format!(
        "Waiting to store the result, because a log cannot be read for now: {missing}. The Job is kept, and the sink \
         retries until {}; then the log counts as lost",
        lost_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    );
    recorder.publish(&about_job(job, keys::REASON_DELAYED, "Retrying", note)).await
}

/// Reports that a result could not be stored. `gone`: the Job is deleted, so there is no further attempt.
pub(crate) async fn publish_lost(
    recorder: &Recorder,
    job: &JobSnapshot,
    why: &str,
    gone: bool,
) -> Result<bool, ApiError> {
    let (action, note) = if gone {
        ("Lost", format!("The Job was deleted before its result was stored, and storing it failed: {why}"))
    } else {
        ("Retrying", format!("Storing the result failed: {why}. The sink retries until the Job is deleted"))
    };
    recorder.publish(&about_job(job, keys::REASON_LOST, action, note)).await
}

fn about_job(job: &JobSnapshot, reason: &'static str, action: &'static str, note: String) -> EventSpec {
    EventSpec {
        namespace: job.namespace.clone(),
        name: names::event_name(&job.name, &job.uid, reason),
        event_type: EventType::Warning,
        reason,
        action,
        note,
        regarding: job_reference(&job.namespace, &job.name, Some(&job.uid)),
        related: None,
    }
}
