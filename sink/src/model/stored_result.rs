//! A stored result, as far as retention needs it.

use std::sync::Arc;

use jiff::Timestamp;
use job_handler_shared::{
    keys,
    names::OBJECT_NAME_MAX,
    result::{
        metadata::{RETENTION, RetentionFacts, requesting_policy},
        storage_kind::StorageKind,
    },
};
use kube::core::ObjectMeta;

use crate::model::result_ref::ResultRef;

/// Most bytes of data in one ConfigMap or Secret (`MaxSecretSize` in `pkg/apis/core/types.go` of Kubernetes).
const OBJECT_MAX: u64 = 1 << 20;
/// Most policies of an object without a seal, and the longest one: the sink keeps them in memory, and each run of retention
/// looks them up.
const UNSEALED_POLICIES_MAX: usize = 16;
const POLICY_MAX: usize = OBJECT_NAME_MAX + "ClusterJobPolicy/".len();

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
    /// From its annotation, as far as that is believed.
    pub facts: Arc<RetentionFacts>,
}

impl StoredResult {
    /// From the metadata of the result that `result` refers to.
    ///
    /// - Without a valid annotation, the object's creation replaces the times, and no policy is known to have requested it:
    ///   only the cluster's budget applies.
    /// - No Job is younger than its result: times after the object's creation, which the apiserver sets, are not believed.
    /// - The bytes are those that the sink counted in the objects that it wrote, if the seal holds. Otherwise no more are
    ///   believed than one object can hold.
    pub fn of(uid: &str, result: &ResultRef, metadata: &ObjectMeta) -> Self {
        let made = metadata.creation_timestamp.as_ref().map(|time| time.0);
        let text = metadata.annotations.as_ref().and_then(|all| all.get(RETENTION));
        let mut facts = text.and_then(|text| serde_json::from_str::<RetentionFacts>(text).ok()).unwrap_or(
            RetentionFacts {
                created: Timestamp::MAX,
                finished: Timestamp::MAX,
                bytes: OBJECT_MAX,
                ..RetentionFacts::default()
            },
        );
        let made = made.unwrap_or_else(Timestamp::now);
        (facts.created, facts.finished) = (facts.created.min(made), facts.finished.min(made));
        if !result.sealed {
            facts.bytes = facts.bytes.min(OBJECT_MAX);
            facts.policies.retain(|policy| policy.len() <= POLICY_MAX);
            facts.policies.truncate(UNSEALED_POLICIES_MAX);
            facts.policies.shrink_to_fit();
        }
        let group = metadata.labels.as_ref().and_then(|labels| labels.get(keys::GROUP));
        Self {
            kind: result.kind,
            namespace: result.namespace.clone(),
            name: result.name.clone(),
            uid: uid.to_owned(),
            group: group.map(|group| Arc::from(group.as_str())),
            // Events that a receiver has yet to take are pending, too.
            pending: result.pending || !result.outbox.is_empty(),
            facts: Arc::new(facts),
        }
    }

    pub(crate) fn rank(&self) -> (Timestamp, &str, &str) {
        (self.facts.created, &self.uid, &self.name)
    }

    pub(crate) fn group(&self) -> Option<(&str, &str)> {
        Some((&self.namespace, self.group.as_deref()?))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn read(sealed: bool, annotation: &str) -> RetentionFacts {
        let metadata = ObjectMeta {
            creation_timestamp: Some(Time(Timestamp::from_second(7).unwrap())),
            annotations: Some([(RETENTION.to_owned(), annotation.to_owned())].into()),
            ..ObjectMeta::default()
        };
        let result = ResultRef { sealed, ..ResultRef::at(StorageKind::ConfigMap, "ci", "a-results") };
        (*StoredResult::of("u", &result, &metadata).facts).clone()
    }

    #[test]
    fn with_an_invalid_annotation_only_the_clusters_bound_applies() {
        let read = read(true, "{");
        assert_eq!((read.finished.as_second(), read.policies.len(), read.bytes), (7, 0, OBJECT_MAX));
    }

    #[test]
    fn dates_in_the_future_and_bytes_without_a_seal_are_not_believed() {
        let facts = RetentionFacts {
            created: Timestamp::from_second(5).unwrap(),
            finished: Timestamp::from_second(6).unwrap(),
            bytes: 9 * OBJECT_MAX,
            shards: 8,
            policies: vec![requesting_policy("JobPolicy", "p")],
            ..RetentionFacts::default()
        };
        let text = serde_json::to_string(&facts).unwrap();
        assert_eq!(read(true, &text), facts);
        assert_eq!(read(false, &text), RetentionFacts { bytes: OBJECT_MAX, ..facts.clone() });
        let text = text.replace("1970-01-01", "9000-01-01");
        let made = Timestamp::from_second(7).unwrap();
        assert_eq!(read(true, &text), RetentionFacts { created: made, finished: made, ..facts });
    }
}
