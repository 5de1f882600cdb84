//! Changes the manifest of a stored result, such as its list of pending announcements.

use job_handler_shared::{
    kube::error::{ApiError, call},
    result::{
        manifest::{KEY, Manifest},
        metadata::{self, OUTBOX, PENDING},
    },
};
use kube::Client;
use serde_json::{Value, json};

use crate::result::{
    lookup::{self, CommittedResult},
    seal::Seal,
    storage::ResultStorage,
};

/// Attempts against conflicting writes.
pub(super) const ATTEMPTS: usize = 5;

/// Changes a stored manifest, guarded by its resourceVersion. `change` returns whether it changed anything.
pub(crate) async fn update_manifest(
    client: &Client,
    seal: &Seal,
    committed: &CommittedResult,
    change: impl Fn(&mut Manifest) -> bool,
) -> Result<(), ApiError> {
    let job = &committed.manifest.job;
    let storage = ResultStorage::namespaced(client, committed.kind, &job.namespace);
    let mut current = committed.clone();
    for _ in 0..ATTEMPTS {
        let mut manifest = current.manifest.clone();
        if !change(&mut manifest) {
            return Ok(());
        }
        let (metadata, text) = manifest_patch(&mut manifest, &current.version);
        let what = format!("update result {}/{}", job.namespace, current.name);
        match call(&what, storage.merge(&current.name, &metadata, KEY, text)).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_conflict() || error.is_not_found() => {
                match lookup::reload(client, seal, &current).await? {
                    Some(found) => current = found,
                    None => return Ok(()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    let what = format!("update result {}/{}", job.namespace, current.name);
    Err(ApiError::Refused {
        what,
        code: 409,
        reason: String::new(),
        message: "other writers kept changing it".into(),
    })
}

/// The manifest's text and the metadata that match it, for this version only.
fn manifest_patch(manifest: &mut Manifest, version: &str) -> (Value, String) {
    // Serializing a manifest that was read cannot fail.
    let text = manifest.to_json().unwrap_or_default();
    let pending = (!manifest.announcements_pending.is_empty()).then_some("pending");
    let metadata = json!({
        "resourceVersion": version,
        "labels": {PENDING: pending},
        "annotations": {OUTBOX: metadata::format_outbox(&manifest.cloud_events_pending)},
    });
    (metadata, text)
}
