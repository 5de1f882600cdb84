//! A stored result, as far as retention needs it.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use job_handler_shared::{
    keys,
    result::{
        metadata::{RETENTION, RetentionFacts, requesting_policy},
        storage_kind::StorageKind,
    },
};

/// The policies that request a result, for [`RetentionFacts`].
pub(crate) fn requesting_policies(
    policies: &[Arc<job_handler_shared::policy::parsed::Policy>],
) -> Vec<String> {
    let asking = policies.iter().filter(|policy| policy.spec.results.is_some());
    asking.map(|policy| requesting_policy(policy.reference.kind, &policy.reference.name)).collect()
}

/// A stored result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResult {
    /// Kind of its object.
    pub kind: StorageKind,
    /// The namespace of the object and of its Job.
    pub namespace: String,
    /// The name of the object with the manifest.
    pub name: String,
    /// The Job's uid.
    pub uid: String,
    /// The Job's group.
    pub group: Option<Arc<str>>,
    /// It has pending announcements.
    pub pending: bool,
    /// From its annotation.
    pub facts: Arc<RetentionFacts>,
}

impl StoredResult {
    /// From the metadata of a result. Without a valid annotation, the object's creation replaces the times, and no policy is
    /// known to have requested it: only the cluster's budget applies.
    pub fn new(
        kind: StorageKind,
        (namespace, name, uid): (String, String, String),
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
        made: Timestamp,
        pending: bool,
    ) -> Self {
        let facts =
            annotations.get(RETENTION).and_then(|text| serde_json::from_str::<RetentionFacts>(text).ok());
        let facts =
            facts.unwrap_or(RetentionFacts { created: made, finished: made, ..RetentionFacts::default() });
        let group = labels.get(keys::GROUP).map(|group| Arc::from(group.as_str()));
        Self { kind, namespace, name, uid, group, pending, facts: Arc::new(facts) }
    }

    pub(crate) fn rank(&self) -> (Timestamp, &str, &str) {
        (self.facts.created, &self.uid, &self.name)
    }

    pub(crate) fn group(&self) -> Option<(&str, &str)> {
        Some((&self.namespace, self.group.as_deref()?))
    }
}
