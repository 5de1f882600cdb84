//! Tells of a stored result by Events, and remembers in the manifest that it was told.
//!
//! Windows: before the Event is written the manifest says it is pending, so a stop there loses nothing, even if the Job
//! is deleted meanwhile: the manifest holds all that the Event says. Between Event and memory a stop causes a second
//! try, which finds the Event (its name is derived from the Job's uid and the reason) and writes none. Events expire
//! (apiserver `--event-ttl`, an hour by default): only if the sink stays away that long in that very window, the Event
//! is written anew; there is never more than one.

use job_handler_shared::{job::snapshot::Outcome, keys, names};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use serde_json::{Value, json};

use crate::{
    cloudevents::outbox::{self, OUTBOX},
    model::manifest::{KEY, Manifest, PENDING},
    notify::recorder::{Kind, NOTE_MAX, Teller, Told, job_reference},
    result::{
        storage::{self, Holder},
        writer::{self, Committed},
    },
};
use job_handler_shared::kube::error::{ApiError, call};

/// Races with other writers of the manifest are looked at again this often.
const ROUNDS: usize = 5;

/// Writes the Events that are pending, then notes that none is. Gives how many were written now.
///
/// # Errors
/// Where something could not be written; what was is found the next time.
pub async fn announce(client: &Client, teller: &Teller, committed: &Committed) -> Result<usize, ApiError> {
    let mut told = 0;
    for reason in &committed.manifest.announcements_pending {
        let Some(event) = event(&committed.manifest, committed.kind, &committed.name, reason) else {
            tracing::warn!(reason, result = committed.name, "unknown announcement in a manifest; left out");
            continue;
        };
        match teller.tell(&event).await {
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

/// Changes a stored manifest, by its version; `change` tells whether there was anything to change.
///
/// # Errors
/// Where it could not be written.
pub async fn amend(
    client: &Client,
    committed: &Committed,
    change: impl Fn(&mut Manifest) -> bool,
) -> Result<(), ApiError> {
    let job = &committed.manifest.job;
    let holder = Holder::namespaced(client, committed.kind, &job.namespace);
    let mut current = committed.clone();
    for _ in 0..ROUNDS {
        let mut manifest = current.manifest.clone();
        if !change(&mut manifest) {
            return Ok(());
        }
        let (metadata, text) = noted(&mut manifest, &current.version);
        let what = format!("note what was told in {}/{}", job.namespace, current.name);
        match call(&what, holder.merge(&current.name, &metadata, KEY, text)).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_conflict() || error.is_not_found() => {
                match writer::again(client, &current).await? {
                    Some(found) => current = found,
                    None => return Ok(()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    let what = format!("note what was told in {}/{}", job.namespace, current.name);
    Err(ApiError::Refused { what, code: 409, reason: String::new(), message: "it keeps changing".into() })
}

/// The manifest's text, and the metadata that go with it; they hold only for this version.
fn noted(manifest: &mut Manifest, version: &str) -> (Value, String) {
    // A manifest that was read can be written; an empty text would only be refused by the apiserver's guard below.
    let text = manifest.to_json().unwrap_or_default();
    let pending = (!manifest.announcements_pending.is_empty()).then_some("pending");
    let metadata = json!({
        "resourceVersion": version,
        "labels": {PENDING: pending},
        "annotations": {OUTBOX: outbox::annotation(&manifest.cloud_events_pending)},
    });
    (metadata, text)
}

fn event(manifest: &Manifest, holds: storage::Kind, result: &str, reason: &str) -> Option<Told> {
    let job = &manifest.job;
    let regarding = job_reference(&job.namespace, &job.name, Some(&job.uid));
    let related = Some(ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some(holds.name().to_owned()),
        namespace: Some(job.namespace.clone()),
        name: Some(result.to_owned()),
        ..ObjectReference::default()
    });
    let (kind, reason, action, note) = match reason {
        keys::REASON_PROCESSING => {
            let (kind, action) = match manifest.outcome {
                Outcome::Completed => (Kind::Normal, "Completed"),
                Outcome::Failed => (Kind::Warning, "Failed"),
            };
            (kind, keys::REASON_PROCESSING, action, manifest.note(holds, result, NOTE_MAX))
        }
        keys::REASON_NAME_TAKEN => {
            let taken = names::result_name(&job.name);
            let note = format!(
                "{0} {1}/{taken} exists and is not job-handler's: it was left alone, and the result is stored in {0} \
                 {result}",
                holds.name(),
                job.namespace
            );
            (Kind::Warning, keys::REASON_NAME_TAKEN, "Stored", note)
        }
        _ => return None,
    };
    Some(Told {
        namespace: job.namespace.clone(),
        name: names::event_name(&job.name, &job.uid, reason),
        kind,
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
    teller: &Teller,
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
    teller
        .tell(&Told {
            namespace: job.namespace.clone(),
            name: names::event_name(&job.name, &job.uid, keys::REASON_LOST),
            kind: Kind::Warning,
            reason: keys::REASON_LOST,
            action,
            note,
            regarding: job_reference(&job.namespace, &job.name, Some(&job.uid)),
            related: None,
        })
        .await
}
