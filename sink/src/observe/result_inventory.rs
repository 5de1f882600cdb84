//! All stored results, with what retention needs to know of them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use job_handler_shared::result::{metadata::OUTBOX, storage_kind::StorageKind};
use kube::core::ObjectMeta;
use parking_lot::Mutex;

use crate::model::stored_result::StoredResult;

/// Kind, namespace and name of the object that stores a result.
type ResultObjectKey = (StorageKind, String, String);

/// The results that the watch has seen; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inventory(Arc<Mutex<HashMap<ResultObjectKey, StoredResult>>>);

impl Inventory {
    /// Adds or replaces a result. Only the store calls this and the next two, together with its references to results.
    pub(super) fn put(&self, stored: StoredResult) {
        self.0.lock().insert((stored.kind, stored.namespace.clone(), stored.name.clone()), stored);
    }

    pub(super) fn remove(&self, kind: StorageKind, namespace: &str, name: &str) {
        self.0.lock().remove(&(kind, namespace.to_owned(), name.to_owned()));
    }

    /// Removes results of this kind that `is_listed` does not name.
    pub(super) fn retain(&self, of: StorageKind, is_listed: impl Fn(&str, &str) -> bool) {
        self.0.lock().retain(|(kind, namespace, name), _| *kind != of || is_listed(namespace, name));
    }

    pub(crate) fn all(&self) -> Vec<StoredResult> {
        self.0.lock().values().cloned().collect()
    }

    /// Number of shards of each Job's stored result, by the Job's uid.
    pub(crate) fn shards(&self) -> HashMap<String, usize> {
        let mut shards = HashMap::new();
        for stored in self.0.lock().values() {
            let most: &mut usize = shards.entry(stored.uid.clone()).or_default();
            *most = (*most).max(stored.facts.shards);
        }
        shards
    }

    /// Number of objects of a Job's stored result in the object store. None: no result is stored; Some(None): an older
    /// version wrote it and did not record the number.
    pub(crate) fn objects(&self, uid: &str) -> Option<Option<usize>> {
        let known = self.0.lock();
        let mut of_job = known.values().filter(|stored| stored.uid == uid).peekable();
        of_job.peek()?;
        // There are two while an older result is renamed.
        Some(of_job.map(|stored| stored.facts.objects).sum())
    }
}

/// Reads a result's metadata.
pub(crate) fn stored_of(kind: StorageKind, meta: &ObjectMeta, uid: &str, pending: bool) -> StoredResult {
    let none = BTreeMap::new();
    let annotations = meta.annotations.as_ref().unwrap_or(&none);
    // Events that a receiver has yet to take are pending, too.
    let pending = pending || annotations.contains_key(OUTBOX);
    let made = meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    StoredResult::new(
        kind,
        (text(&meta.namespace), text(&meta.name), uid.to_owned()),
        meta.labels.as_ref().unwrap_or(&none),
        annotations,
        made,
        pending,
    )
}
