//! The policies and namespaces that a program has seen, and which of the policies apply to a Job.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::policy::{effective::EffectivePolicy, parsed::Policy, reference::Labels, set::PolicySet};

/// Policies by a key, and the labels of namespaces.
#[derive(Debug)]
pub struct PolicyIndex<K> {
    policies: BTreeMap<K, Arc<Policy>>,
    namespaces: HashMap<String, Arc<Labels>>,
    all: Arc<PolicySet>,
    enforced: Arc<PolicySet>,
}

/// The enforced policies as they apply to one namespace. It is detached from the index, so that no lock is held while
/// policies are matched.
#[derive(Clone, Debug)]
pub struct NamespacePolicies {
    policies: Arc<PolicySet>,
    namespace: String,
    labels: Arc<Labels>,
}

impl<K> Default for PolicyIndex<K> {
    fn default() -> Self {
        Self {
            policies: BTreeMap::new(),
            namespaces: HashMap::new(),
            all: Arc::default(),
            enforced: Arc::default(),
        }
    }
}

impl<K: Ord> PolicyIndex<K> {
    /// Stores a policy, or removes one that cannot be read. Returns whether that changes anything; another status alone
    /// does not.
    pub fn put(&mut self, key: K, policy: Option<Arc<Policy>>) -> bool {
        let changed = match policy {
            None => self.policies.remove(&key).is_some(),
            Some(policy) if self.policies.get(&key).is_some_and(|stored| is_same(stored, &policy)) => false,
            Some(policy) => {
                self.policies.insert(key, policy);
                true
            }
        };
        if changed {
            self.rebuild();
        }
        changed
    }

    /// Removes the policies that `keep` does not hold for. Returns whether there were any.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) -> bool {
        let before = self.policies.len();
        self.policies.retain(|key, _| keep(key));
        let changed = self.policies.len() != before;
        if changed {
            self.rebuild();
        }
        changed
    }

    /// Replaces the policies that `replaced` holds for, after a list.
    pub fn replace(
        &mut self,
        replaced: impl Fn(&K) -> bool,
        policies: impl IntoIterator<Item = (K, Arc<Policy>)>,
    ) {
        self.policies.retain(|key, _| !replaced(key));
        self.policies.extend(policies);
        self.rebuild();
    }

    fn rebuild(&mut self) {
        let policies = || self.policies.values().cloned();
        self.all = Arc::new(PolicySet::new(policies()));
        self.enforced = Arc::new(PolicySet::new(policies().filter(|policy| policy.enforced())));
    }

    /// All policies, in every mode.
    pub fn all(&self) -> &Arc<PolicySet> {
        &self.all
    }

    /// The enforced policies.
    pub fn enforced(&self) -> &Arc<PolicySet> {
        &self.enforced
    }

    /// Stores the labels of a namespace. Returns whether they are new.
    pub fn put_namespace(&mut self, name: &str, labels: Labels) -> bool {
        if self.namespaces.get(name).is_some_and(|known| **known == labels) {
            return false;
        }
        self.namespaces.insert(name.to_owned(), Arc::new(labels));
        true
    }

    /// Removes the namespaces that `keep` does not hold for.
    pub fn retain_namespaces(&mut self, keep: impl Fn(&str) -> bool) {
        self.namespaces.retain(|name, _| keep(name));
    }

    /// The labels of a namespace, if it is known.
    pub fn namespace(&self, name: &str) -> Option<Arc<Labels>> {
        self.namespaces.get(name).cloned()
    }

    /// All known namespaces with their labels.
    pub fn namespaces(&self) -> Vec<(String, Arc<Labels>)> {
        self.namespaces.iter().map(|(name, labels)| (name.clone(), labels.clone())).collect()
    }

    /// The enforced policies as they apply to a namespace; nothing while the namespace is not known.
    pub fn in_namespace(&self, name: &str) -> Option<NamespacePolicies> {
        let labels = self.namespace(name)?;
        Some(NamespacePolicies { policies: self.enforced.clone(), namespace: name.to_owned(), labels })
    }
}

/// The status of a policy changes often, its spec seldom; only the spec changes the generation.
fn is_same(a: &Policy, b: &Policy) -> bool {
    a.generation == b.generation && a.reference == b.reference && a.spec == b.spec
}

impl NamespacePolicies {
    /// The policies that select a Job with these labels, in order of precedence.
    pub fn matching(&self, labels: &Labels) -> Vec<&Arc<Policy>> {
        self.policies.matching(&self.namespace, &self.labels, labels)
    }

    /// What these policies say together about a Job with these labels.
    pub fn effective(&self, labels: &Labels) -> EffectivePolicy {
        EffectivePolicy::combine(self.matching(labels), labels)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::policies::job_policy;

    fn policy(name: &str, generation: i64, mode: &str) -> Arc<Policy> {
        let metadata = json!({"name": name, "namespace": "ci", "uid": name, "generation": generation});
        job_policy(metadata, json!({"mode": mode, "results": {}}))
    }

    #[test]
    fn the_sets_follow_the_policies() {
        let mut index = PolicyIndex::default();
        assert!(index.put("a", Some(policy("a", 1, "Enforce"))));
        assert!(!index.put("a", Some(policy("a", 1, "Enforce"))), "nothing has changed");
        assert!(index.put("b", Some(policy("b", 1, "Warn"))));
        assert_eq!((index.all().iter().count(), index.enforced().iter().count()), (2, 1));
        assert!(index.put("b", Some(policy("b", 2, "Enforce"))));
        assert_eq!(index.enforced().iter().count(), 2);
        assert!(
            index.put("b", None) && !index.put("b", None),
            "a policy that cannot be read selects nothing"
        );
        index
            .replace(|key| *key == "a", [("c", policy("c", 1, "Enforce")), ("d", policy("d", 1, "Enforce"))]);
        assert_eq!(index.all().iter().count(), 2);
        assert!(index.retain(|key| *key == "c") && !index.retain(|key| *key == "c"));
        assert_eq!(index.all().iter().count(), 1);
    }

    #[test]
    fn policies_apply_in_known_namespaces_only() {
        let mut index = PolicyIndex::default();
        index.put("a", Some(policy("a", 1, "Enforce")));
        assert!(index.in_namespace("ci").is_none());
        assert!(index.put_namespace("ci", Labels::new()) && !index.put_namespace("ci", Labels::new()));
        index.put_namespace("qa", Labels::new());
        let matching = |name| index.in_namespace(name).unwrap().matching(&Labels::new()).len();
        assert_eq!((matching("ci"), matching("qa")), (1, 0));
        assert!(index.in_namespace("ci").unwrap().effective(&Labels::new()).results.is_some());
        index.retain_namespaces(|name| name == "qa");
        assert!(index.namespace("ci").is_none());
    }
}
