//! The policies and namespaces that a program has seen, and which of the policies apply to a Job.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use crate::policy::{
    effective::EffectivePolicy, label_keys, parsed::Policy, reference::Labels, set::PolicySet,
};

/// JobPolicies of one namespace that apply. Further ones, the newer ones, do not, so that one namespace can neither make
/// every decision slow nor use up what all policies share: the Leases of the webhook replicas and the webhook
/// configurations of the limits.
pub const NAMESPACE_POLICIES_MAX: usize = 100;
/// Different label keys that these policies may name together. Memory keeps the labels with these keys of each Job of the
/// namespace, so each key costs whoever holds all Jobs up to 380 bytes per Job. Usual namespaces name fewer than ten.
pub const NAMESPACE_LABEL_KEYS_MAX: usize = 64;

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
        self.put_all([(key, policy)])
    }

    /// Stores several policies, as [`Self::put`] stores one.
    pub fn put_all(&mut self, policies: impl IntoIterator<Item = (K, Option<Arc<Policy>>)>) -> bool {
        let mut changed = false;
        for (key, policy) in policies {
            changed |= match policy {
                None => self.policies.remove(&key).is_some(),
                Some(policy) if self.policies.get(&key).is_some_and(|stored| is_same(stored, &policy)) => {
                    false
                }
                Some(policy) => {
                    self.policies.insert(key, policy);
                    true
                }
            };
        }
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
        let policies = oldest_of_each_namespace(self.policies.values());
        self.enforced = Arc::new(PolicySet::new(policies.iter().filter(|policy| policy.enforced()).cloned()));
        self.all = Arc::new(PolicySet::new(policies));
    }

    /// All policies that apply, in every mode.
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

/// What the policies of a namespace that apply use up.
#[derive(Default)]
struct NamespaceShare<'a> {
    policies: usize,
    label_keys: HashSet<&'a str>,
}

/// The policies without those above [`NAMESPACE_POLICIES_MAX`] and [`NAMESPACE_LABEL_KEYS_MAX`]: the older ones come first,
/// and one whose keys have no room takes none from those behind it. All programs leave out the same ones.
fn oldest_of_each_namespace<'a>(policies: impl Iterator<Item = &'a Arc<Policy>>) -> Vec<Arc<Policy>> {
    let mut policies: Vec<&Arc<Policy>> = policies.collect();
    policies.sort_by(|a, b| (a.created, &a.reference).cmp(&(b.created, &b.reference)));
    let mut shares: HashMap<&str, NamespaceShare<'_>> = HashMap::new();
    policies.retain(|policy| {
        let Some(namespace) = policy.reference.namespace.as_deref() else { return true };
        let share = shares.entry(namespace).or_default();
        let mut further: HashSet<&str> = label_keys::named_by(&policy.spec).map(String::as_str).collect();
        further.retain(|key| !share.label_keys.contains(key));
        let has_room = share.policies < NAMESPACE_POLICIES_MAX
            && share.label_keys.len() + further.len() <= NAMESPACE_LABEL_KEYS_MAX;
        if has_room {
            share.policies += 1;
            share.label_keys.extend(further);
        }
        has_room
    });
    policies.into_iter().cloned().collect()
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
    use crate::testing::policies::{cluster_job_policy, job_policy};

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
    fn of_too_many_policies_of_a_namespace_the_oldest_apply() {
        let made = |namespace: Option<&str>, name: String, second: usize| {
            let created = format!("2026-01-01T00:{:02}:{:02}Z", second / 60, second % 60);
            let metadata =
                json!({"name": name, "namespace": namespace, "uid": name, "creationTimestamp": created});
            match namespace {
                Some(_) => (name, Some(job_policy(metadata, json!({"results": {}})))),
                None => (name, Some(cluster_job_policy(metadata, json!({"results": {}})))),
            }
        };
        let mut index = PolicyIndex::default();
        let max = NAMESPACE_POLICIES_MAX;
        // The names are in the reverse order of the ages: a name does not make a policy older.
        let crowd = (0..max + 30).map(|n| made(Some("ci"), format!("p-{:03}", 999 - n), n));
        index.put_all(crowd.chain([made(Some("qa"), "other".to_owned(), 900)]));
        index.put_all((0..max + 30).map(|n| made(None, format!("wide-{n}"), n)));
        let applies = |index: &PolicyIndex<String>, name: &str| {
            let names: Vec<_> = index.all().iter().map(|policy| policy.reference.name.clone()).collect();
            assert_eq!(names.len(), index.enforced().iter().count());
            names.iter().any(|known| known == name)
        };
        let (oldest, last, first_beyond) = ("p-999", format!("p-{}", 1000 - max), format!("p-{}", 999 - max));
        assert!(applies(&index, oldest) && applies(&index, &last) && !applies(&index, &first_beyond));
        assert!(applies(&index, "other"), "of another namespace");
        assert!(applies(&index, &format!("wide-{}", max + 29)), "of the cluster's administrators");
        index.put(oldest.to_owned(), None);
        assert!(applies(&index, &first_beyond), "there is room again");
    }

    #[test]
    fn policies_whose_label_keys_have_no_room_do_not_apply() {
        let made = |namespace: Option<&str>, second: usize, keys: std::ops::Range<usize>| {
            let name = format!("{}-{second}", namespace.unwrap_or_default());
            let metadata = json!({"name": name, "namespace": namespace, "uid": name,
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")});
            let labels: Labels = keys.map(|n| (format!("l{n}"), String::new())).collect();
            let spec = json!({"jobSelector": {"matchLabels": labels}});
            let policy = match namespace {
                Some(_) => job_policy(metadata, spec),
                None => cluster_job_policy(metadata, spec),
            };
            (name, Some(policy))
        };
        let mut index = PolicyIndex::default();
        index.put_all([
            made(Some("ci"), 1, 0..32),
            made(Some("ci"), 2, 0..63),
            made(Some("ci"), 3, 62..65),
            made(Some("ci"), 4, 63..64),
            made(Some("ci"), 5, 64..65),
            made(Some("qa"), 1, 64..80),
            made(None, 1, 0..90),
        ]);
        let applying = |index: &PolicyIndex<String>| -> Vec<String> {
            index.all().iter().map(|policy| policy.reference.name.clone()).collect()
        };
        assert_eq!(applying(&index), ["ci-1", "ci-2", "ci-4", "qa-1", "-1"]);
        index.put("ci-2".to_owned(), None);
        assert_eq!(applying(&index), ["ci-1", "ci-3", "ci-4", "ci-5", "qa-1", "-1"], "there is room again");
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
