//! Tells of a stored result by Events, and remembers in the manifest that it was told.
//!
//! Windows: before the Event is written the manifest says it is pending, so a stop there loses nothing, even if the Job
//! is deleted meanwhile: the manifest holds all that the Event says. Between Event and memory a stop causes a second
//! try, which finds the Event (its name is derived from the Job's uid and the reason) and writes none. Events expire
//! (apiserver `--event-ttl`, an hour by default): only if the sink stays away that long in that very window, the Event
//! is written anew; there is never more than one.

use job_handler_shared::{
    job::snapshot::Outcome,
    keys,
    kube::error::ApiError,
    names,
    result::{manifest::Manifest, storage_kind::StorageKind},
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;

use crate::{
    notify::recorder::{EventSpec, EventType, NOTE_MAX, Recorder, job_reference},
    result::writer::{Committed, amend},
};

/// Writes the Events that are pending, then notes that none is. Gives how many were written now.
///
/// # Errors
/// Where something could not be written; what was is found the next time.
pub async fn announce(
    client: &Client,
    recorder: &Recorder,
    committed: &Committed,
) -> Result<usize, ApiError> {
    let mut told = 0;
    for reason in &committed.manifest.announcements_pending {
        let Some(event) = event(&committed.manifest, committed.kind, &committed.name, reason) else {
            tracing::warn!(reason, result = committed.name, "unknown announcement in a manifest; left out");
            continue;
        };
        match recorder.publish(&event).await {
            Ok(new) => told += usize::from(new),
            // Nobody can be told in a namespace that is going or gone.
            Err(error) if error.is_terminating() || error.is_not_found() => return Ok(told),
            Err(error) => return Err(error),
        }
    }
    note(client, committed).await?;
    Ok(told)
}

/// Takes the pending announcements off the manifest.
async fn note(client: &Client, committed: &Committed) -> Result<(), ApiError> {
    let clear = |manifest: &mut Manifest| !std::mem::take(&mut manifest.announcements_pending).is_empty();
    amend(client, committed, clear).await
}

fn event(manifest: &Manifest, holds: StorageKind, result: &str, reason: &str) -> Option<EventSpec> {
    let job = &manifest.job;
    let regarding = job_reference(&job.namespace, &job.name, Some(&job.uid));
    let related = Some(ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(holds.kind().to_owned()),
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
            (kind, keys::REASON_PROCESSING, action, manifest.note(holds, result, NOTE_MAX))
        }
        keys::REASON_NAME_TAKEN => {
            let taken = names::result_name(&job.name);
            let note = format!(
                "{0} {1}/{taken} exists and is not job-handler's: it was left alone, and the result is stored in {0} \
                 {result}",
                holds.kind(),
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

/// Tells that a result could not be stored at all; a Job that is still there keeps its harvest deadline.
///
/// # Errors
/// Where the Event could not be written.
pub async fn announce_lost(
    recorder: &Recorder,
    job: &job_handler_shared::job::snapshot::JobSnapshot,
    why: &str,
    gone: bool,
) -> Result<bool, ApiError> {
    let (action, note) = if gone {
        ("Lost", format!("The Job was deleted before its result was stored, and now it cannot be: {why}"))
    } else {
        let note =
            format!("The result could not be stored yet: {why}. The sink keeps trying until the Job is gone");
        ("Retrying", note)
    };
    recorder
        .publish(&EventSpec {
            namespace: job.namespace.clone(),
            name: names::event_name(&job.name, &job.uid, keys::REASON_LOST),
            event_type: EventType::Warning,
            reason: keys::REASON_LOST,
            action,
            note,
            regarding: job_reference(&job.namespace, &job.name, Some(&job.uid)),
            related: None,
        })
        .await
}
