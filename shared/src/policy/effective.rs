//! Combines the policies that apply to a Job. The README of this crate states the rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    keys,
    policy::{
        bytes::Bytes,
        cleanup::{Cleanup, Keep, Propagation},
        limit::{FailureBackoff, Limit},
        parsed::Policy,
        reference::{Labels, PolicyRef},
        results::{Logs, LogsMode, Results, StorageType},
        spec::GroupSpec,
        stamp::{ContainerResources, Range},
    },
};

/// A value, and the policy that states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromPolicy<T> {
    /// The value.
    pub value: T,
    /// The policy.
    pub policy: PolicyRef,
}

/// The default and the maximum of several policies for one field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CombinedRange {
    /// Value for Jobs that state none; never above `max`.
    pub default: Option<FromPolicy<i64>>,
    /// Smallest maximum of all policies.
    pub max: Option<FromPolicy<i64>>,
}

/// All policies of a Job, combined.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EffectivePolicy {
    /// TTL of the finished Job, in seconds.
    pub ttl: CombinedRange,
    /// Active deadline, in seconds.
    pub deadline: CombinedRange,
    /// Retries before the Job counts as failed.
    pub backoff_limit: CombinedRange,
    /// Labels to add to the Job and its pods.
    pub labels: BTreeMap<String, FromPolicy<String>>,
    /// Requests and limits for containers that state none.
    pub container_resources: Option<FromPolicy<ContainerResources>>,
    /// How the Job is grouped.
    pub group: Option<FromPolicy<GroupSpec>>,
    /// Limits that the Job must all fit.
    pub limits: Vec<FromPolicy<Limit>>,
    /// Backoffs that all apply.
    pub failure_backoff: Vec<FromPolicy<FailureBackoff>>,
    /// What to store of the Job; none = no policy asks for its result.
    pub results: Option<Results>,
    /// When the Job is deleted; none = only its own TTL applies.
    pub cleanup: Option<Cleanup>,
    /// Names of the CloudEvents receivers.
    pub cloud_event_sinks: BTreeSet<String>,
}

impl EffectivePolicy {
    /// Combines policies, given in order of precedence, for a Job with these labels. A Job that opts out gets no defaults,
    /// results and cleanup; limits, maxima and the group still apply.
    pub fn combine<'a>(policies: impl IntoIterator<Item = &'a Arc<Policy>>, job_labels: &Labels) -> Self {
        let opted_out = opted_out(job_labels);
        let mut all = Self::default();
        for policy in policies {
            let (spec, by) = (&policy.spec, &policy.reference);
            if let Some(stamp) = &spec.stamp {
                all.ttl.add(stamp.ttl_seconds_after_finished, by);
                all.deadline.add(stamp.active_deadline_seconds, by);
                all.backoff_limit.add(stamp.backoff_limit, by);
                if all.container_resources.is_none() {
                    all.container_resources =
                        stamp.container_resources.clone().map(|resources| from_policy(resources, by));
                }
                for (key, value) in &stamp.labels {
                    all.labels.entry(key.clone()).or_insert_with(|| from_policy(value.clone(), by));
                }
            }
            if all.group.is_none() {
                all.group = spec.group.clone().map(|group| from_policy(group, by));
            }
            all.limits.extend(spec.limits.iter().map(|limit| from_policy(limit.clone(), by)));
            all.failure_backoff.extend(spec.failure_backoff.iter().map(|b| from_policy(b.clone(), by)));
            all.results = merge(all.results.take(), spec.results.clone(), combine_results);
            all.cleanup = merge(all.cleanup.take(), spec.cleanup.clone(), combine_cleanup);
            all.cloud_event_sinks.extend(spec.cloud_event_sinks.iter().map(|sink| sink.name.clone()));
        }
        for bound in [&mut all.ttl, &mut all.deadline, &mut all.backoff_limit] {
            bound.apply_max(opted_out);
        }
        if opted_out {
            all.labels.clear();
            all.container_resources = None;
            all.results = None;
            all.cleanup = None;
        }
        all
    }
}

impl CombinedRange {
    fn add(&mut self, range: Option<Range>, by: &PolicyRef) {
        let Some(range) = range else { return };
        if self.default.is_none() {
            self.default = range.default.map(|value| from_policy(value, by));
        }
        if let Some(max) = range.max
            && self.max.as_ref().is_none_or(|known| max < known.value)
        {
            self.max = Some(from_policy(max, by));
        }
    }

    fn apply_max(&mut self, opted_out: bool) {
        if opted_out {
            self.default = None;
        }
        // The default of one policy can exceed the maximum of another.
        if let (Some(default), Some(max)) = (&mut self.default, &self.max) {
            default.value = default.value.min(max.value);
        }
    }
}

pub(crate) fn opted_out(job_labels: &Labels) -> bool {
    job_labels.get(keys::ENABLED).is_some_and(|value| value == "false")
}

fn from_policy<T>(value: T, by: &PolicyRef) -> FromPolicy<T> {
    FromPolicy { value, policy: by.clone() }
}

fn merge<T>(a: Option<T>, b: Option<T>, both: fn(T, T) -> T) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(both(a, b)),
        (one, other) => one.or(other),
    }
}

fn combine_results(a: Results, b: Results) -> Results {
    let larger = |a: Bytes, b: Bytes| a.max(b);
    Results {
        storage_type: match (a.storage_type, b.storage_type) {
            (StorageType::ConfigMap, StorageType::ConfigMap) => StorageType::ConfigMap,
            _ => StorageType::Secret,
        },
        ttl_seconds: a.ttl_seconds.max(b.ttl_seconds),
        max_per_group: a.max_per_group.max(b.max_per_group),
        max_bytes_per_namespace: larger(a.max_bytes_per_namespace, b.max_bytes_per_namespace),
        harvest_deadline_seconds: a.harvest_deadline_seconds.max(b.harvest_deadline_seconds),
        logs: Logs {
            mode: match (a.logs.mode, b.logs.mode) {
                (LogsMode::None, LogsMode::None) => LogsMode::None,
                _ => LogsMode::HeadAndTail,
            },
            max_bytes_per_container: larger(a.logs.max_bytes_per_container, b.logs.max_bytes_per_container),
            max_bytes_per_job: larger(a.logs.max_bytes_per_job, b.logs.max_bytes_per_job),
        },
    }
}

fn combine_cleanup(a: Cleanup, b: Cleanup) -> Cleanup {
    Cleanup {
        succeeded_policy: a.succeeded_policy.max(b.succeeded_policy),
        failed_policy: a.failed_policy.max(b.failed_policy),
        keep: merge(a.keep, b.keep, |a, b| Keep {
            newest: a.newest.max(b.newest),
            newest_succeeded: a.newest_succeeded.max(b.newest_succeeded),
        }),
        // Foreground waits for the pods, which is the safer choice.
        propagation_policy: match (a.propagation_policy, b.propagation_policy) {
            (Propagation::Background, Propagation::Background) => Propagation::Background,
            _ => Propagation::Foreground,
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        policy::{cleanup::CleanupPolicy, set::PolicySet},
        testing::policies::{cluster, labels, namespaced},
    };

    fn effective(policies: Vec<Arc<Policy>>, job: &[(&str, &str)]) -> EffectivePolicy {
        let set = PolicySet::new(policies);
        let job = labels(job);
        EffectivePolicy::combine(set.matching("ci", &Labels::new(), &job), &job)
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
    fn results_and_cleanup_combine_towards_keeping() {
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
}
