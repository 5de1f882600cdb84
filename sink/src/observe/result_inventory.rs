//! All stored results, as far as retention has to know them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use job_handler_shared::result::{metadata::OUTBOX, storage_kind::StorageKind};
use kube::core::ObjectMeta;
use parking_lot::{Mutex, MutexGuard};

use crate::model::stored_result::StoredResult;

/// What holds a result: its kind, namespace and name.
type Place = (StorageKind, String, String);

/// The results that the watch has seen; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Inventory(Arc<Mutex<HashMap<Place, StoredResult>>>);

impl Inventory {
    fn lock(&self) -> MutexGuard<'_, HashMap<Place, StoredResult>> {
        // Every change is one call on the map.
        self.0.lock()
    }

    /// Takes one in, or its change.
    pub fn put(&self, stored: StoredResult) {
        self.lock().insert((stored.kind, stored.namespace.clone(), stored.name.clone()), stored);
    }

    /// Forgets one.
    pub fn drop(&self, kind: StorageKind, namespace: &str, name: &str) {
        self.lock().remove(&(kind, namespace.to_owned(), name.to_owned()));
    }

    /// Forgets those of this kind for which this does not hold.
    pub fn retain(&self, of: StorageKind, holds: impl Fn(&str, &str) -> bool) {
        self.lock().retain(|(kind, namespace, name), _| *kind != of || holds(namespace, name));
    }

    /// All of them.
    pub fn all(&self) -> Vec<StoredResult> {
        self.lock().values().cloned().collect()
    }

    /// How many shards the stored result of each Job has, by its uid.
    pub fn shards(&self) -> HashMap<String, usize> {
        let mut shards = HashMap::new();
        for stored in self.lock().values() {
            let most: &mut usize = shards.entry(stored.uid.clone()).or_default();
            *most = (*most).max(stored.facts.shards);
        }
        shards
    }

    /// How many objects the stored result of a Job has, where one is stored, and as far as it tells.
    pub fn objects(&self, uid: &str) -> Option<Option<usize>> {
        let known = self.lock();
        let mut of_job = known.values().filter(|stored| stored.uid == uid).peekable();
        of_job.peek()?;
        // While an older result is moved aside there are two of it.
        Some(of_job.map(|stored| stored.facts.objects).sum())
    }
}

/// Labels and annotations, for [`StoredResult::new`].
pub(crate) fn stored_of(kind: StorageKind, meta: &ObjectMeta, uid: &str, pending: bool) -> StoredResult {
    let none = BTreeMap::new();
    let annotations = meta.annotations.as_ref().unwrap_or(&none);
    // A receiver that is away has yet to be told, too.
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
