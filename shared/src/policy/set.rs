//! All policies of the cluster, and which of them apply to a Job. [`crate::policy::effective`] combines them.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use parking_lot::RwLock;

use crate::policy::{
    effective::{self, EffectivePolicy},
    label_keys::NamespaceLabelKeys,
    parsed::Policy,
    reference::{Labels, PolicyKind, PolicyRef},
    spec::Mode,
};

/// A consistent snapshot of all policies of the cluster.
#[derive(Clone, Debug, Default)]
pub struct PolicySet {
    /// In order of precedence: `JobPolicies` by namespace and name, then `ClusterJobPolicies` by name.
    policies: Vec<Arc<Policy>>,
    label_keys: OnceLock<Arc<NamespaceLabelKeys>>,
    combined: Arc<RwLock<HashMap<Combination, Arc<EffectivePolicy>>>>,
    as_if_enforced: OnceLock<Option<Box<PolicySet>>>,
}

/// Indexes of policies in the set, and whether the Job opted out: all that [`EffectivePolicy::combine`] depends on.
type Combination = (Vec<usize>, bool);

/// Maximum number of cached combinations per set. Clusters have a handful; others are computed each time.
const MAX_COMBINATIONS: usize = 1024;

impl PolicySet {
    /// Builds a set from policies in any order.
    pub fn new(policies: impl IntoIterator<Item = Arc<Policy>>) -> Self {
        let mut policies: Vec<_> = policies.into_iter().collect();
        policies.sort_by(|a, b| a.reference.cmp(&b.reference));
        Self { policies, ..Self::default() }
    }

    /// All policies, in order of precedence.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.iter()
    }

    /// The policies that can apply in a namespace whatever its labels, in order of precedence: its own and all of the
    /// cluster. The others are not looked at: there may be thousands.
    pub fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Arc<Policy>> {
        let cluster = self.policies.partition_point(|p| p.reference.kind < PolicyKind::ClusterJobPolicy);
        let (own, cluster) = self.policies.split_at(cluster);
        let from = own.partition_point(|p| p.reference.namespace.as_deref() < Some(namespace));
        let until = own.partition_point(|p| p.reference.namespace.as_deref() <= Some(namespace));
        own[from..until].iter().chain(cluster)
    }

    /// The label keys by which these policies select, group and stamp.
    pub fn label_keys(&self) -> &Arc<NamespaceLabelKeys> {
        let policies = || self.policies.iter().map(Arc::as_ref);
        self.label_keys.get_or_init(|| Arc::new(NamespaceLabelKeys::new(policies())))
    }

    /// Takes over the label keys of the set before, if anyone asked for them, where they are the same.
    pub(super) fn share_label_keys(&mut self, before: &Self) {
        if let Some(known) = before.label_keys.get() {
            let keys = NamespaceLabelKeys::new(self.policies.iter().map(Arc::as_ref)).sharing(known);
            self.label_keys = OnceLock::from(Arc::new(keys));
        }
    }

    /// Policies that apply to a Job, in order of precedence.
    pub fn matching(
        &self,
        namespace: &str,
        namespace_labels: &Labels,
        job_labels: &Labels,
    ) -> Vec<&Arc<Policy>> {
        let policies = self.of_namespace(namespace);
        policies.filter(|p| p.selects(namespace, namespace_labels, job_labels)).collect()
    }

    /// Combines policies of this set, given in order of precedence. Caches the combination for all Jobs that the same
    /// policies select.
    pub fn effective(&self, some: &[&Arc<Policy>], job_labels: &Labels) -> Arc<EffectivePolicy> {
        let compute = || Arc::new(EffectivePolicy::combine(some.iter().copied(), job_labels));
        let mut places = Vec::with_capacity(some.len());
        let mut rest = self.policies.iter().enumerate();
        for policy in some {
            match rest.find(|(_, own)| Arc::ptr_eq(own, policy)) {
                Some((place, _)) => places.push(place),
                // From another set, or in another order.
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

    /// The same policies with every mode set to `Enforce`; none if no policy has mode `Warn`.
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

    /// Whether this policy is in the set with mode `Warn`.
    pub fn warns(&self, policy: &PolicyRef) -> bool {
        self.policies.iter().any(|own| !own.enforced() && own.reference == *policy)
    }

    /// Whether the set has no policies.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        keys,
        testing::policies::{cluster, job_policy, labels, namespaced},
    };

    #[test]
    fn cached_combinations_equal_computed_ones() {
        let ttl = |seconds: i64| json!({"stamp": {"ttlSecondsAfterFinished": {"default": seconds}}});
        let policies = || vec![cluster("a", ttl(1)), namespaced("c", ttl(3)), namespaced("b", ttl(2))];
        let (set, other) = (PolicySet::new(policies()), PolicySet::new(policies()));
        for job in [labels(&[]), labels(&[(keys::ENABLED, "false")]), labels(&[(keys::ENABLED, "true")])] {
            // Each twice: computed, then from the cache.
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
                    assert_eq!(
                        *set.effective(&some, &job),
                        EffectivePolicy::combine(some.iter().copied(), &job)
                    );
                }
            }
        }
        assert_eq!(set.combined.read().len(), 16);
    }

    #[test]
    fn the_policies_of_a_namespace_are_its_own_and_those_of_the_cluster() {
        let of = |namespace: &str, name: &str| {
            job_policy(json!({"name": name, "namespace": namespace, "uid": name}), json!({}))
        };
        let set = PolicySet::new([
            cluster("wide", json!({})),
            of("ci", "a"),
            of("ci", "b"),
            of("ca", "c"),
            of("cj", "d"),
            of("c", "e"),
        ]);
        let names = |namespace| -> Vec<String> {
            set.of_namespace(namespace).map(|policy| policy.reference.name.clone()).collect()
        };
        assert_eq!(names("ci"), ["a", "b", "wide"]);
        assert_eq!(names("c"), ["e", "wide"]);
        assert_eq!(names("zz"), ["wide"]);
        assert_eq!(PolicySet::default().of_namespace("ci").count(), 0);
    }

    #[test]
    fn as_if_enforced_changes_only_the_mode() {
        let warns = namespaced("w", json!({"mode": "Warn", "limits": [{"name": "x", "maxActiveJobs": 1}]}));
        let set = PolicySet::new([namespaced("a", json!({})), warns.clone()]);
        let as_if = set.as_if_enforced().unwrap();
        assert!(as_if.iter().all(|policy| policy.enforced()) && as_if.iter().count() == 2);
        assert!(set.warns(&warns.reference) && !as_if.warns(&warns.reference));
        assert!(PolicySet::new([namespaced("a", json!({}))]).as_if_enforced().is_none());
    }
}
