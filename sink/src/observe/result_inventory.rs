//! All stored results, with what retention needs to know of them.

use std::{collections::HashMap, sync::Arc};

use job_handler_shared::result::storage_kind::StorageKind;
use parking_lot::Mutex;

use crate::model::{job_change::Uid, stored_result::StoredResult};

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

    /// Number of shards of each Job's stored result, by namespace and the Job's uid: a label with the uid of a Job says
    /// nothing about Jobs of other namespaces.
    pub(crate) fn shards(&self) -> HashMap<(String, Uid), usize> {
        let mut shards = HashMap::new();
        for stored in self.0.lock().values() {
            let most: &mut usize = shards.entry((stored.namespace.clone(), stored.uid.clone())).or_default();
            *most = (*most).max(stored.facts.shards);
        }
        shards
    }

    /// Number of objects of a Job's stored result in the object store. None: no result is stored; Some(None): an older
    /// version wrote it and did not record the number.
    pub(crate) fn objects(&self, namespace: &str, uid: &str) -> Option<Option<usize>> {
        let known = self.0.lock();
        let own = |stored: &&StoredResult| stored.uid == uid && stored.namespace == namespace;
        let mut of_job = known.values().filter(own).peekable();
        of_job.peek()?;
        // There are two while an older result is renamed. Whoever may write an object without a seal chooses its number.
        let mut objects = of_job.map(|stored| stored.facts.objects);
        Some(objects.try_fold(0, |sum: usize, more| Some(sum.saturating_add(more?))))
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::result::metadata::RetentionFacts;

    use super::*;

    #[test]
    fn whatever_number_of_objects_an_annotation_claims_it_can_be_added() {
        let inventory = Inventory::default();
        let put = |name: &str, objects: Option<usize>| {
            inventory.put(StoredResult {
                kind: StorageKind::default(),
                namespace: "ci".to_owned(),
                name: name.to_owned(),
                uid: "u".to_owned(),
                group: None,
                pending: false,
                facts: Arc::new(RetentionFacts { objects, ..RetentionFacts::default() }),
            });
        };
        assert_eq!(inventory.objects("ci", "u"), None);
        put("own", Some(2));
        put("other", Some(usize::MAX));
        assert_eq!(inventory.objects("ci", "u"), Some(Some(usize::MAX)));
        put("other", None);
        assert_eq!(inventory.objects("ci", "u"), Some(None));
    }
}
