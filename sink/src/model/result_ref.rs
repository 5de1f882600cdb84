//! Where a result is stored, and what its metadata says.

use std::collections::BTreeMap;

use job_handler_shared::{
    keys,
    result::{
        metadata::{self, may_be_result},
        storage_kind::StorageKind,
    },
};
use kube::core::ObjectMeta;

/// Where a result is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ResultRef {
    /// Namespace.
    pub namespace: String,
    /// Name of what holds the manifest.
    pub name: String,
    /// What holds it.
    pub kind: StorageKind,
    /// Announcements of it are pending.
    pub pending: bool,
    /// Receivers of CloudEvents that are still to be told of it.
    pub outbox: Vec<String>,
    /// Bytes of all that is stored of it; as the watch tells, as are the following two.
    pub bytes: u64,
    /// Parts of it that could not be had.
    pub lost: u32,
    /// Uids of the policies that asked for it, comma between them.
    pub policies: Box<str>,
}

impl ResultRef {
    /// A place of which nothing more is known.
    pub fn at(kind: StorageKind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned(), ..Self::default() }
    }

    /// Whether both are the same place, whatever is known of it.
    pub fn is_at(&self, other: &Self) -> bool {
        (self.kind, &self.namespace, &self.name) == (other.kind, &other.namespace, &other.name)
    }
}

/// What a result's metadata say: which Job's, and where.
pub(crate) fn place_of(kind: StorageKind, metadata: &ObjectMeta) -> Option<(String, ResultRef)> {
    let none = BTreeMap::new();
    let labels = metadata.labels.as_ref().unwrap_or(&none);
    let annotations = metadata.annotations.as_ref().unwrap_or(&none);
    let (uid, name) = (labels.get(keys::JOB_UID)?, metadata.name.as_deref()?);
    // A copy under another name: people's own.
    if !may_be_result(name, uid) {
        return None;
    }
    // A number that people wrote over is none.
    fn number<N: std::str::FromStr>(annotations: &BTreeMap<String, String>, key: &str) -> Option<N> {
        annotations.get(key)?.parse().ok()
    }
    let place = ResultRef {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: name.to_owned(),
        kind,
        pending: labels.contains_key(metadata::PENDING),
        outbox: metadata::parse_outbox(metadata.annotations.as_ref()),
        bytes: number(annotations, metadata::SIZE).unwrap_or_default(),
        lost: number(annotations, metadata::LOST).unwrap_or_default(),
        policies: annotations.get(metadata::POLICIES).map_or("", String::as_str).into(),
    };
    Some((uid.clone(), place))
}
