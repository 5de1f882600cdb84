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
    /// Stores a policy, or removes one that cannot be read. Returns whether other policies apply or are awaited then: neither
    /// another status alone nor what has no room changes that.
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
        changed && self.rebuild()
    }

    /// Removes the policies that `keep` does not hold for. Returns whether other policies apply or are awaited then.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) -> bool {
        let before = self.policies.len();
        self.policies.retain(|key, _| keep(key));
        self.policies.len() != before && self.rebuild()
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

    /// Returns whether other policies apply, or are awaited, than before. If not, the sets stay: whoever has policies without
    /// room may change them as often as he likes, and each new set costs both programs a look at all Jobs.
    fn rebuild(&mut self) -> bool {
        let awaited = std::mem::take(&mut self.awaited);
        let mut all = PolicySet::new(self.cut_down());
        if all.iter().map(Arc::as_ptr).eq(self.all.iter().map(Arc::as_ptr)) {
            return self.awaited != awaited;
        }
        all.share_label_keys(&self.all);
        self.enforced = Arc::new(PolicySet::new(all.iter().filter(|policy| policy.enforced()).cloned()));
        self.all = Arc::new(all);
        true
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
mod tests;
