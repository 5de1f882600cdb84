//! A reference to a stored result, with what its metadata says.

use std::collections::BTreeMap;

use job_handler_shared::{
    keys,
    result::{
        metadata::{self, may_be_result},
        storage_kind::StorageKind,
    },
};
use kube::core::ObjectMeta;

/// A reference to a stored result.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResultRef {
    /// The namespace of the object and of its Job.
    pub namespace: String,
    /// Name of the object with the manifest.
    pub name: String,
    /// Kind of that object.
    pub kind: StorageKind,
    /// The sink wrote it. Otherwise it may be anybody's: it announces nothing and counts in no other namespace.
    pub sealed: bool,
    /// It has pending announcements.
    pub pending: bool,
    /// Receivers with undelivered CloudEvents.
    pub outbox: Vec<String>,
    /// Size in bytes, including shards. This and the next two come from the watch.
    pub bytes: u64,
    /// Number of losses.
    pub lost: u32,
    /// Uids of the policies that requested it, separated by commas.
    pub policies: Box<str>,
}

impl ResultRef {
    /// A reference without metadata.
    pub fn at(kind: StorageKind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned(), ..Self::default() }
    }

    /// Whether both refer to the same object.
    pub(crate) fn is_at(&self, other: &Self) -> bool {
        (self.kind, &self.namespace, &self.name) == (other.kind, &other.namespace, &other.name)
    }
}

/// Parses the metadata of a result: the uid of its Job, and the reference. `sealed`: its seal holds.
pub(crate) fn result_ref_of(
    kind: StorageKind,
    metadata: &ObjectMeta,
    sealed: bool,
) -> Option<(String, ResultRef)> {
    let none = BTreeMap::new();
    let labels = metadata.labels.as_ref().unwrap_or(&none);
    // What anybody may have written counts nowhere.
    let annotations = metadata.annotations.as_ref().filter(|_| sealed).unwrap_or(&none);
    let (uid, name) = (labels.get(keys::JOB_UID)?, metadata.name.as_deref()?);
    // A copy under another name belongs to users.
    if !may_be_result(name, uid) {
        return None;
    }
    fn number<N: std::str::FromStr>(annotations: &BTreeMap<String, String>, key: &str) -> Option<N> {
        annotations.get(key)?.parse().ok()
    }
    let result = ResultRef {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: name.to_owned(),
        kind,
        sealed,
        pending: sealed && labels.contains_key(metadata::PENDING),
        outbox: metadata::parse_outbox(Some(annotations)),
        bytes: number(annotations, metadata::SIZE).unwrap_or_default(),
        lost: number(annotations, metadata::LOST).unwrap_or_default(),
        policies: annotations.get(metadata::POLICIES).map_or("", String::as_str).into(),
    };
    Some((uid.clone(), result))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn without_a_seal_nothing_is_pending_or_counted() {
        let metadata: ObjectMeta = serde_json::from_value(json!({"name": "a-results", "namespace": "ci",
            "labels": {"job-handler/job-uid": "u", "job-handler/announce": "pending"},
            "annotations": {"job-handler/cloudevents": "ci", "job-handler/size": "7"}}))
        .unwrap();
        for (sealed, outbox, bytes) in [(true, vec!["ci".to_owned()], 7), (false, Vec::new(), 0)] {
            let (uid, result) = result_ref_of(StorageKind::ConfigMap, &metadata, sealed).unwrap();
            assert_eq!((uid.as_str(), result.sealed, result.pending), ("u", sealed, sealed));
            assert_eq!((result.outbox, result.bytes), (outbox, bytes));
        }
    }
}
