//! Which policies apply to a Job. [`crate::policy::effective`] combines them.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, OnceLock},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{
    ResourceExt,
    core::{ParseExpressionError, Selector, SelectorExt},
};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

pub use crate::policy::effective::{Bound, Effective, From};
use crate::policy::{
    effective,
    spec::{ClusterJobPolicy, JobPolicy, Mode, PolicySpec, WhenFull},
};

/// Labels of a Job or namespace.
pub type Labels = BTreeMap<String, String>;

/// The two kinds of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub enum PolicyKind {
    /// Namespaced; goes first.
    JobPolicy,
    /// Cluster-scoped.
    ClusterJobPolicy,
}

/// Names a policy. Displays as `JobPolicy ci/builds`. Ordered by precedence.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRef {
    /// Kind.
    pub kind: PolicyKind,
    /// Namespace of a `JobPolicy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Uid; `kubectl describe` finds Events by it.
    pub uid: String,
}

/// A policy, its selectors parsed.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Who it is.
    pub reference: PolicyRef,
    /// `metadata.generation`: the revision of its spec.
    pub generation: i64,
    /// What it says.
    pub spec: PolicySpec,
    jobs: Selector,
    namespaces: Selector,
    namespace_selector: Option<LabelSelector>,
}

/// A policy that cannot be read. The CRD's rules refuse these at apply; one that came in past them (an older CRD) is
/// reported, and selects nothing.
#[derive(Debug, thiserror::Error)]
#[error("{policy}: spec.{field}: {source}")]
pub struct PolicyError {
    /// Which policy.
    pub policy: String,
    /// Which field.
    pub field: &'static str,
    /// Why.
    pub source: ParseExpressionError,
}

impl Policy {
    /// Reads a namespaced policy.
    ///
    /// # Errors
    /// For a selector that the CRD's rules should have refused.
    pub fn namespaced(policy: &JobPolicy) -> Result<Self, PolicyError> {
        let reference = PolicyRef {
            kind: PolicyKind::JobPolicy,
            namespace: policy.namespace(),
            name: policy.name_any(),
            uid: policy.uid().unwrap_or_default(),
        };
        Self::new(reference, policy.metadata.generation, &policy.spec.policy, None)
    }

    /// Reads a cluster-wide policy.
    ///
    /// # Errors
    /// For a selector that the CRD's rules should have refused.
    pub fn cluster(policy: &ClusterJobPolicy) -> Result<Self, PolicyError> {
        let reference = PolicyRef {
            kind: PolicyKind::ClusterJobPolicy,
            namespace: None,
            name: policy.name_any(),
            uid: policy.uid().unwrap_or_default(),
        };
        let namespaces = policy.spec.namespace_selector.as_ref();
        Self::new(reference, policy.metadata.generation, &policy.spec.policy, namespaces)
    }

    fn new(
        reference: PolicyRef,
        generation: Option<i64>,
        spec: &PolicySpec,
        namespaces: Option<&LabelSelector>,
    ) -> Result<Self, PolicyError> {
        let parse = |field, selector: Option<&LabelSelector>| {
            selector.map_or(Ok(Selector::default()), |s| {
                Selector::try_from(s.clone()).map_err(|source| PolicyError {
                    policy: reference.to_string(),
                    field,
                    source,
                })
            })
        };
        Ok(Self {
            jobs: parse("jobSelector", spec.job_selector.as_ref())?,
            namespaces: parse("namespaceSelector", namespaces)?,
            namespace_selector: namespaces.cloned(),
            generation: generation.unwrap_or_default(),
            spec: spec.clone(),
            reference,
        })
    }

    /// Whether it applies to Jobs with these labels in a namespace with these.
    pub fn selects(&self, namespace: &str, namespace_labels: &Labels, job_labels: &Labels) -> bool {
        self.reference.namespace.as_deref().is_none_or(|own| own == namespace)
            && self.namespaces.matches(namespace_labels)
            && self.jobs.matches(job_labels)
    }

    /// Whether it reaches the Jobs of a namespace at all.
    pub fn selects_namespace(&self, namespace: &str, namespace_labels: &Labels) -> bool {
        self.reference.namespace.as_deref().is_none_or(|own| own == namespace)
            && self.namespaces.matches(namespace_labels)
    }

    /// The namespaces of a cluster-wide policy, as it states them.
    pub fn namespace_selector(&self) -> Option<&LabelSelector> {
        self.namespace_selector.as_ref()
    }

    /// Whether it acts, rather than only telling.
    pub fn enforced(&self) -> bool {
        self.spec.mode == Mode::Enforce
    }

    /// Whether it changes no Job: it may refuse some, and asks nothing of those that pass. Such Jobs bear no mark of it.
    pub fn leaves_jobs_alone(&self) -> bool {
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

    /// Whether it can refuse or queue a Job.
    pub fn limits_jobs(&self) -> bool {
        !self.spec.limits.is_empty() || self.spec.failure_backoff.is_some()
    }
}

/// Every policy of the cluster, as one consistent picture.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    /// In order of precedence: namespaced ones by (namespace, name), then the cluster's by name.
    policies: Vec<Arc<Policy>>,
    combined: Arc<RwLock<HashMap<Combination, Arc<Effective>>>>,
    as_if_enforced: OnceLock<Option<Box<PolicySet>>>,
}

/// Which policies of a set (their places in it), and whether the Job opted out: all that [`Effective::of`] depends on.
type Combination = (Vec<usize>, bool);

/// Combinations remembered per set. Clusters have a handful; beyond this many they are computed anew each time.
const MAX_COMBINATIONS: usize = 1024;

impl PolicySet {
    /// A set of these policies, in whatever order they come.
    pub fn new(policies: impl IntoIterator<Item = Arc<Policy>>) -> Self {
        let mut policies: Vec<_> = policies.into_iter().collect();
        policies.sort_by(|a, b| a.reference.cmp(&b.reference));
        Self { policies, ..Self::default() }
    }

    /// All of them, in order of precedence.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// Those that apply to a Job, in order of precedence.
    pub fn matching(
        &self,
        namespace: &str,
        namespace_labels: &Labels,
        job_labels: &Labels,
    ) -> Vec<&Arc<Policy>> {
        self.policies.iter().filter(|p| p.selects(namespace, namespace_labels, job_labels)).collect()
    }

    /// What some policies of this set, in order of precedence, say about a Job with these labels: [`Effective::of`],
    /// computed once for all Jobs that the same policies select.
    pub fn combined(&self, some: &[&Arc<Policy>], job_labels: &Labels) -> Arc<Effective> {
        let compute = || Arc::new(Effective::of(some.iter().copied(), job_labels));
        let mut places = Vec::with_capacity(some.len());
        let mut rest = self.policies.iter().enumerate();
        for policy in some {
            match rest.find(|(_, own)| Arc::ptr_eq(own, policy)) {
                Some((place, _)) => places.push(place),
                // Not of this set, or in another order.
                None => return compute(),
            }
        }
        let combination = (places, effective::opted_out(job_labels));
        if let Some(known) = self.combined.read().get(&combination) {
            return known.clone();
        }
        let computed = compute();
        let mut combined = self.combined.write();
        if combined.len() < MAX_COMBINATIONS {
            combined.insert(combination, computed.clone());
        }
        computed
    }

    /// The same policies as if those in mode Warn were enforced; none where no policy warns.
    pub fn as_if_enforced(&self) -> Option<&Self> {
        let make = || {
            let warns = |policy: &&Arc<Policy>| !policy.enforced();
            self.policies.iter().find(warns)?;
            Some(Box::new(Self::new(self.policies.iter().map(|policy| match policy.enforced() {
                true => policy.clone(),
                false => {
                    let mut policy = Policy::clone(policy);
                    policy.spec.mode = Mode::Enforce;
                    Arc::new(policy)
                }
            }))))
        };
        self.as_if_enforced.get_or_init(make).as_deref()
    }

    /// Whether this policy is one of the set that only tells.
    pub fn warns(&self, policy: &PolicyRef) -> bool {
        self.policies.iter().any(|own| !own.enforced() && own.reference == *policy)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JobPolicy => "JobPolicy",
            Self::ClusterJobPolicy => "ClusterJobPolicy",
        })
    }
}

impl fmt::Display for PolicyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        keys,
        policy::spec::{CleanupPolicy, Keep, LogsMode, Propagation, StorageType},
    };

    fn namespaced(name: &str, spec: Value) -> Arc<Policy> {
        let policy: JobPolicy = serde_json::from_value(json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
            "metadata": {"name": name, "namespace": "ci", "uid": name}, "spec": spec,
        }))
        .unwrap();
        Arc::new(Policy::namespaced(&policy).unwrap())
    }

    fn cluster(name: &str, spec: Value) -> Arc<Policy> {
        let policy: ClusterJobPolicy = serde_json::from_value(json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "ClusterJobPolicy",
            "metadata": {"name": name, "uid": name}, "spec": spec,
        }))
        .unwrap();
        Arc::new(Policy::cluster(&policy).unwrap())
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn effective(policies: Vec<Arc<Policy>>, job: &[(&str, &str)]) -> Effective {
        let set = PolicySet::new(policies);
        let job = labels(job);
        Effective::of(set.matching("ci", &Labels::new(), &job), &job)
    }

    #[test]
    fn selects_by_namespace_and_labels() {
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

    #[test]
    fn what_is_remembered_is_what_would_be_computed() {
        let ttl = |seconds: i64| json!({"stamp": {"ttlSecondsAfterFinished": {"default": seconds}}});
        let policies = || vec![cluster("a", ttl(1)), namespaced("c", ttl(3)), namespaced("b", ttl(2))];
        let (set, other) = (PolicySet::new(policies()), PolicySet::new(policies()));
        for job in [labels(&[]), labels(&[(keys::ENABLED, "false")]), labels(&[(keys::ENABLED, "true")])] {
            // Each twice: computed, then remembered.
            for subset in (0..8).chain(0..8) {
                let pick = |set: &PolicySet| -> Vec<Arc<Policy>> {
                    set.iter()
                        .enumerate()
                        .filter(|(n, _)| subset & (1 << n) != 0)
                        .map(|(_, p)| p.clone())
                        .collect()
                };
                for some in [pick(&set), pick(&other), pick(&set).into_iter().rev().collect()] {
                    let some: Vec<&Arc<Policy>> = some.iter().collect();
                    assert_eq!(*set.combined(&some, &job), Effective::of(some.iter().copied(), &job));
                }
            }
        }
        assert_eq!(set.combined.read().len(), 16);
    }

    #[test]
    fn as_if_enforced_differs_in_the_mode_alone() {
        let warns = namespaced("w", json!({"mode": "Warn", "limits": [{"name": "x", "maxActiveJobs": 1}]}));
        let set = PolicySet::new([namespaced("a", json!({})), warns.clone()]);
        let as_if = set.as_if_enforced().unwrap();
        assert!(as_if.iter().all(|policy| policy.enforced()) && as_if.iter().count() == 2);
        assert!(set.warns(&warns.reference) && !as_if.warns(&warns.reference));
        assert!(PolicySet::new([namespaced("a", json!({}))]).as_if_enforced().is_none());
    }

    #[test]
    fn defaults_come_from_the_namespace_first_then_by_name() {
        let ttl = |seconds: i64| json!({"stamp": {"ttlSecondsAfterFinished": {"default": seconds}}});
        let all = vec![cluster("a", ttl(1)), namespaced("c", ttl(3)), namespaced("b", ttl(2))];
        let ttl = effective(all, &[]).ttl.default.unwrap();
        assert_eq!((ttl.value, ttl.policy.to_string().as_str()), (2, "JobPolicy ci/b"));
    }

    #[test]
    fn maxima_add_up_and_cap_defaults() {
        let policies = vec![
            namespaced("a", json!({"stamp": {"backoffLimit": {"default": 5, "max": 9}}})),
            cluster("z", json!({"stamp": {"backoffLimit": {"max": 3}}})),
        ];
        let bound = effective(policies, &[]).backoff_limit;
        assert_eq!(bound.default.unwrap().value, 3);
        assert_eq!(bound.max.unwrap().policy.to_string(), "ClusterJobPolicy z");
    }

    #[test]
    fn limits_add_up() {
        let limit = |name: &str| json!({"limits": [{"name": name, "maxActiveJobs": 1}]});
        let all = effective(vec![namespaced("a", limit("x")), cluster("b", limit("y"))], &[]);
        assert_eq!(all.limits.iter().map(|l| l.value.name.as_str()).collect::<Vec<_>>(), ["x", "y"]);
    }

    #[test]
    fn cleanup_and_retention_combine_towards_keeping() {
        let policies = vec![
            namespaced(
                "a",
                json!({
                    "results": {"ttlSeconds": 10, "maxPerGroup": 50, "logs": {"mode": "None"}},
                    "cleanup": {"succeededPolicy": "AfterHarvest", "failedPolicy": "Never", "keep": {"newest": 3},
                        "propagationPolicy": "Background"},
                }),
            ),
            cluster(
                "b",
                json!({
                    "results": {"storageType": "Secret", "ttlSeconds": 20, "maxPerGroup": 1},
                    "cleanup": {"succeededPolicy": "AfterTTL", "failedPolicy": "AfterHarvest",
                        "keep": {"newest": 1, "newestSucceeded": 2}},
                }),
            ),
        ];
        let all = effective(policies, &[]);
        let results = all.results.unwrap();
        assert_eq!(results.storage_type, StorageType::Secret);
        assert_eq!((results.ttl_seconds, results.max_per_group), (20, 50));
        assert_eq!(results.logs.mode, LogsMode::HeadAndTail);
        let cleanup = all.cleanup.unwrap();
        assert_eq!(cleanup.succeeded_policy, CleanupPolicy::AfterTTL);
        assert_eq!(cleanup.failed_policy, CleanupPolicy::Never);
        assert_eq!(cleanup.keep, Some(Keep { newest: 3, newest_succeeded: 2 }));
        assert_eq!(cleanup.propagation_policy, Propagation::Foreground);
    }

    #[test]
    fn opt_out_keeps_limits_maxima_and_group() {
        let policy = namespaced(
            "a",
            json!({
                "stamp": {"backoffLimit": {"default": 1, "max": 3}, "labels": {"team": "x"}},
                "group": {"type": "Owner"}, "limits": [{"name": "x", "maxActiveJobs": 1}],
                "results": {}, "cleanup": {},
            }),
        );
        let all = effective(vec![policy], &[(keys::ENABLED, "false")]);
        assert!(all.backoff_limit.default.is_none() && all.labels.is_empty());
        assert!(all.results.is_none() && all.cleanup.is_none());
        assert_eq!(all.backoff_limit.max.unwrap().value, 3);
        assert!(all.group.is_some() && all.limits.len() == 1);
    }

    #[test]
    fn a_selector_past_the_schema_is_an_error_with_its_field() {
        let policy: JobPolicy = serde_json::from_value(json!({
            "apiVersion": "job-handler.io/v1alpha1", "kind": "JobPolicy",
            "metadata": {"name": "a", "namespace": "ci"},
            "spec": {"jobSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}},
        }))
        .unwrap();
        let error = Policy::namespaced(&policy).unwrap_err().to_string();
        assert!(error.starts_with("JobPolicy ci/a: spec.jobSelector: "), "{error}");
    }
}
