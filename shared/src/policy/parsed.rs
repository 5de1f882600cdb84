//! A policy with its selectors parsed, and the Jobs it selects.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::core::{ParseExpressionError, Selector, SelectorExt};

use crate::policy::{
    limit::WhenFull,
    reference::{Labels, PolicyKind, PolicyRef},
    spec::{ClusterJobPolicy, JobPolicy, Mode, PolicySpec},
    stamp::Stamp,
};

/// A policy with its selectors parsed.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Identity of the policy.
    pub reference: PolicyRef,
    /// `metadata.generation`: the revision of its spec.
    pub generation: i64,
    /// `metadata.creationTimestamp`, which the apiserver sets: among too many policies, the older ones apply.
    pub created: Option<Timestamp>,
    /// Spec of the policy, without the stamps that would make every Job invalid.
    pub spec: PolicySpec,
    /// The spec's size as JSON, bytes.
    pub(super) bytes: usize,
    /// Those stamps, each with its field and why it is left out.
    pub left_out: Vec<String>,
    jobs: Selector,
    namespaces: Selector,
    namespace_selector: Option<LabelSelector>,
}

/// A policy with an invalid field. The CRD rejects these; one that was stored under an older CRD is reported and selects
/// nothing.
#[derive(Debug, thiserror::Error)]
#[error("{policy}: spec.{field}: {source}")]
pub struct PolicyError {
    /// Kind and name of the policy, such as `JobPolicy ci/builds`.
    pub policy: String,
    /// Field below `spec`.
    pub field: &'static str,
    /// Cause.
    pub source: ParseExpressionError,
}

impl Policy {
    /// Parses a `JobPolicy`.
    ///
    /// # Errors
    /// Fails for a selector that the CRD should have rejected.
    pub fn namespaced(policy: &JobPolicy) -> Result<Self, PolicyError> {
        let reference = PolicyRef::of(PolicyKind::JobPolicy, policy);
        Self::new(reference, &policy.metadata, &policy.spec.policy, None)
    }

    /// Parses a `ClusterJobPolicy`.
    ///
    /// # Errors
    /// Fails for a selector that the CRD should have rejected.
    pub fn cluster(policy: &ClusterJobPolicy) -> Result<Self, PolicyError> {
        let reference = PolicyRef::of(PolicyKind::ClusterJobPolicy, policy);
        let namespaces = policy.spec.namespace_selector.as_ref();
        Self::new(reference, &policy.metadata, &policy.spec.policy, namespaces)
    }

    fn new(
        reference: PolicyRef,
        metadata: &ObjectMeta,
        spec: &PolicySpec,
        namespaces: Option<&LabelSelector>,
    ) -> Result<Self, PolicyError> {
        let invalid = |field, source| PolicyError { policy: reference.to_string(), field, source };
        let parse = |field, selector: Option<&LabelSelector>| {
            selector.map_or(Ok(Selector::default()), |s| {
                Selector::try_from(s.clone()).map_err(|source| invalid(field, source))
            })
        };
        let mut valid = spec.clone();
        let removed = valid.stamp.as_mut().map(Stamp::remove_invalid).unwrap_or_default();
        Ok(Self {
            jobs: parse("jobSelector", spec.job_selector.as_ref())?,
            namespaces: parse("namespaceSelector", namespaces)?,
            namespace_selector: namespaces.cloned(),
            generation: metadata.generation.unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().map(|created| created.0),
            spec: valid,
            bytes: serde_json::to_vec(spec).map_or(0, |json| json.len()),
            left_out: removed.iter().map(|error| format!("spec.{}: {error}", error.field())).collect(),
            reference,
        })
    }

    /// Whether the policy applies to Jobs with these labels in this namespace.
    pub fn selects(&self, namespace: &str, namespace_labels: &Labels, job_labels: &Labels) -> bool {
        self.reference.namespace.as_deref().is_none_or(|own| own == namespace)
            && self.namespaces.matches(namespace_labels)
            && self.jobs.matches(job_labels)
    }

    /// Whether the policy can apply to Jobs of this namespace.
    pub fn selects_namespace(&self, namespace: &str, namespace_labels: &Labels) -> bool {
        self.reference.namespace.as_deref().is_none_or(|own| own == namespace)
            && self.namespaces.matches(namespace_labels)
    }

    /// `namespaceSelector` of a `ClusterJobPolicy`.
    pub fn namespace_selector(&self) -> Option<&LabelSelector> {
        self.namespace_selector.as_ref()
    }

    /// Whether the mode is `Enforce`.
    pub fn enforced(&self) -> bool {
        self.spec.mode == Mode::Enforce
    }

    /// Whether the policy has nothing but limits that reject. It leaves no annotation on the Jobs that pass.
    pub fn never_changes_jobs(&self) -> bool {
        let PolicySpec {
            job_selector: _,
            mode: _,
            stamp: None,
            group: None,
            limits,
            failure_backoff: None,
            results: None,
            cleanup: None,
            cloud_event_sinks,
        } = &self.spec
        else {
            return false;
        };
        cloud_event_sinks.is_empty() && limits.iter().all(|limit| limit.when_full == WhenFull::Reject)
    }

    /// Whether the policy can refuse or queue a Job.
    pub fn has_limits(&self) -> bool {
        !self.spec.limits.is_empty() || self.spec.failure_backoff.is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::policies::{cluster, labels, namespaced};

    #[test]
    fn policies_select_by_namespace_and_labels() {
        let own = namespaced("a", json!({"jobSelector": {"matchLabels": {"app": "build"}}}));
        assert!(own.selects("ci", &Labels::new(), &labels(&[("app", "build")])));
        assert!(!own.selects("ci", &Labels::new(), &labels(&[("app", "other")])));
        assert!(!own.selects("prod", &Labels::new(), &labels(&[("app", "build")])));
        let wide = cluster(
            "b",
            json!({"namespaceSelector": {"matchExpressions": [
            {"key": "team", "operator": "In", "values": ["x", "y"]}]}}),
        );
        assert!(wide.selects("any", &labels(&[("team", "x")]), &Labels::new()));
        assert!(!wide.selects("any", &labels(&[("team", "z")]), &Labels::new()));
        assert!(!wide.selects("any", &Labels::new(), &Labels::new()));
    }

    fn read(spec: serde_json::Value) -> Result<Policy, PolicyError> {
        let policy: JobPolicy = serde_json::from_value(json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
            "metadata": {"name": "a", "namespace": "ci"}, "spec": spec,
        }))
        .unwrap();
        Policy::namespaced(&policy)
    }

    #[test]
    fn an_invalid_field_is_an_error_that_names_it() {
        let spec = json!({"jobSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}});
        let error = read(spec).unwrap_err().to_string();
        assert!(error.starts_with("JobPolicy ci/a: spec.jobSelector: "), "{error}");
    }

    /// Stored under an older CRD: the limits stay in force.
    #[test]
    fn a_stamp_that_makes_jobs_invalid_is_left_out_and_the_rest_applies() {
        let policy = read(json!({
            "stamp": {"labels": {"job-name": "a", "team": "b"}, "backoffLimit": {"max": 1},
                "containerResources": {"limits": {"hugepages-2Mi": "2Mi"}}},
            "limits": [{"name": "l", "maxActiveJobs": 1}],
        }))
        .unwrap();
        let stamp = policy.spec.stamp.as_ref().unwrap();
        assert_eq!(stamp.labels, labels(&[("team", "b")]));
        assert!(stamp.container_resources.is_none() && stamp.backoff_limit.is_some() && policy.has_limits());
        assert_eq!(policy.left_out.len(), 2);
        assert_eq!(policy.left_out[0], "spec.stamp.labels: job-name belongs to the Job controller");
        assert!(policy.left_out[1].starts_with("spec.stamp.containerResources: hugepages need"));
    }
}
