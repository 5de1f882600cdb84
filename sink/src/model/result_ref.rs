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

/// Parses the metadata of a result: the uid of its Job, and the reference.
pub(crate) fn result_ref_of(kind: StorageKind, metadata: &ObjectMeta) -> Option<(String, ResultRef)> {
    let none = BTreeMap::new();
    let labels = metadata.labels.as_ref().unwrap_or(&none);
    let annotations = metadata.annotations.as_ref().unwrap_or(&none);
    let (uid, name) = (labels.get(keys::JOB_UID)?, metadata.name.as_deref()?);
    // A copy under another name belongs to users.
    if !may_be_result(name, uid) {
        return None;
    }
    // An annotation that users have edited may be no number.
    fn number<N: std::str::FromStr>(annotations: &BTreeMap<String, String>, key: &str) -> Option<N> {
        annotations.get(key)?.parse().ok()
    }
    let result = ResultRef {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: name.to_owned(),
        kind,
        pending: labels.contains_key(metadata::PENDING),
        outbox: metadata::parse_outbox(metadata.annotations.as_ref()),
        bytes: number(annotations, metadata::SIZE).unwrap_or_default(),
        lost: number(annotations, metadata::LOST).unwrap_or_default(),
        policies: annotations.get(metadata::POLICIES).map_or("", String::as_str).into(),
    };
    Some((uid.clone(), result))
}
