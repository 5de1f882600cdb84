//! The policies and namespaces that a program has seen, and which of the policies apply to a Job.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::policy::{
    effective::EffectivePolicy,
    namespace_share::{PolicyClaim, share_out},
    parsed::Policy,
    reference::Labels,
    set::PolicySet,
};

/// Policies of a list that are read before those that do not apply are cut down.
const LISTED_WHOLE: usize = 32;

/// Policies by a key, and the labels of namespaces.
///
/// Of a policy that has no room in its namespace, nothing is kept but what tells that. Once there is room for it, it is
/// *awaited*: it applies when it is put again. The sink then changes its status, so that every watch delivers it whole.
#[derive(Debug)]
pub struct PolicyIndex<K> {
    policies: BTreeMap<K, IndexedPolicy>,
    /// Keys of the policies that would apply if they were whole.
    awaited: Vec<K>,
    /// Policies that were put since those without room were cut down.
    uncut: usize,
    namespaces: HashMap<String, Arc<Labels>>,
    all: Arc<PolicySet>,
    enforced: Arc<PolicySet>,
}

#[derive(Debug)]
struct IndexedPolicy {
    claim: PolicyClaim,
    /// None: it does not apply.
    whole: Option<Arc<Policy>>,
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
            awaited: Vec::new(),
            uncut: 0,
            namespaces: HashMap::new(),
            all: Arc::default(),
            enforced: Arc::default(),
        }
    }
}

impl<K: Ord + Clone> PolicyIndex<K> {
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
                Some(policy) if self.knows(&key, &policy) => false,
                Some(policy) => {
                    self.insert(key, policy);
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

    /// Adds a policy of a list that is not complete yet, for [`Self::replace`]. It does not apply before.
    pub fn collect(&mut self, key: K, policy: Arc<Policy>) {
        self.insert(key, policy);
        self.uncut += 1;
        if self.uncut >= LISTED_WHOLE {
            self.cut_down();
        }
    }

    /// Replaces the policies that `replaced` holds for by those that were collected from a list.
    pub fn replace(&mut self, replaced: impl Fn(&K) -> bool, collected: Self) {
        self.policies.retain(|key, _| !replaced(key));
        self.policies.extend(collected.policies);
        self.rebuild();
    }

    /// The policy with this key, if it applies.
    pub fn get(&self, key: &K) -> Option<&Arc<Policy>> {
        self.policies.get(key)?.whole.as_ref()
    }

    /// The policies that would apply if they were put again.
    pub fn awaited(&self) -> &[K] {
        &self.awaited
    }

    fn insert(&mut self, key: K, policy: Arc<Policy>) {
        self.policies.insert(key, IndexedPolicy { claim: PolicyClaim::of(&policy), whole: Some(policy) });
    }

    /// Whether putting this policy would change nothing. Its status changes often, its spec seldom.
    fn knows(&self, key: &K, policy: &Policy) -> bool {
        self.policies.get(key).is_some_and(|stored| match &stored.whole {
            Some(whole) => is_same(whole, policy),
            None => stored.claim == PolicyClaim::of(policy) && !self.awaited.contains(key),
        })
    }

    /// Forgets the content of policies that do not apply. Returns those that do.
    fn cut_down(&mut self) -> Vec<Arc<Policy>> {
        let claims = self.policies.iter().map(|(key, stored)| (&stored.claim, key.clone()));
        let (applying, surplus) = share_out(claims);
        for key in surplus {
            self.policies.get_mut(&key).into_iter().for_each(|stored| stored.whole = None);
        }
        let whole = |key: &K| self.policies.get(key).and_then(|stored| stored.whole.clone());
        let policies: Vec<Arc<Policy>> = applying.iter().filter_map(whole).collect();
        self.awaited = applying.into_iter().filter(|key| whole(key).is_none()).collect();
        self.uncut = 0;
        policies
    }

    fn rebuild(&mut self) {
        let policies = self.cut_down();
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
    use crate::{
        policy::namespace_share::{NAMESPACE_POLICIES_MAX, NAMESPACE_POLICY_BYTES_MAX},
        testing::policies::{cluster_job_policy, job_policy},
    };

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
        let mut listed = PolicyIndex::default();
        ["c", "d"].into_iter().for_each(|name| listed.collect(name, policy(name, 1, "Enforce")));
        index.replace(|key| *key == "a", listed);
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
        assert!(index.awaited().is_empty());
        index.put(oldest.to_owned(), None);
        assert!(!applies(&index, &first_beyond) && index.awaited() == [first_beyond.clone()]);
        let again = made(Some("ci"), first_beyond.clone(), max);
        index.put_all([again]);
        assert!(applies(&index, &first_beyond) && index.awaited().is_empty(), "there is room again");
    }

    #[test]
    fn of_policies_without_room_the_content_is_forgotten() {
        let values: Vec<String> = (0..1000).map(|n| format!("{n:063}")).collect();
        let selector = json!({"matchExpressions": [{"key": "a", "operator": "In", "values": values}]});
        let large = |n: usize| {
            let created = format!("2026-01-01T00:{:02}:{:02}Z", n / 60, n % 60);
            let metadata = json!({"name": format!("p-{n:03}"), "namespace": "ci", "uid": n.to_string(),
                "generation": 1, "creationTimestamp": created});
            job_policy(metadata, json!({"jobSelector": selector}))
        };
        let whole = |index: &PolicyIndex<usize>| {
            index.policies.values().filter(|stored| stored.whole.is_some()).count()
        };
        let (mut index, mut listed) = (PolicyIndex::default(), PolicyIndex::default());
        let fits = NAMESPACE_POLICY_BYTES_MAX / large(0).bytes;
        assert!((10..20).contains(&fits));
        // A list is in the order of names, whatever the ages.
        for n in (0..500).rev() {
            listed.collect(n, large(n));
            assert!(whole(&listed) < fits + LISTED_WHOLE);
        }
        index.replace(|_| true, listed);
        let names: Vec<&str> = index.all().iter().map(|policy| &*policy.reference.name).collect();
        assert_eq!((names.len(), names[0], whole(&index)), (fits, "p-000", fits));
        assert!(!index.put(400, Some(large(400))), "another status");
        // One without room takes none from a small one.
        let metadata = json!({"name": "small", "namespace": "ci", "uid": "s", "generation": 1,
            "creationTimestamp": "2026-01-02T00:00:00Z"});
        assert!(index.put(999, Some(job_policy(metadata, json!({})))));
        assert_eq!(index.all().iter().count(), fits + 1);
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
        assert_eq!(index.awaited(), ["ci-3", "ci-5"]);
        index.put_all([made(Some("ci"), 3, 62..65), made(Some("ci"), 5, 64..65)]);
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
