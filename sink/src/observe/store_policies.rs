//! The policies of the store.
//!
//! [`PolicyIndex`] has the content of those that apply. Of the others, which whoever may write JobPolicies can make as many
//! and as large as he likes, nothing is kept but name and status.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use job_handler_shared::policy::{
    index::PolicyIndex,
    parsed::Policy,
    reference::{PolicyKind, PolicyRef},
    set::PolicySet,
    status::PolicyStatus,
};

use crate::{
    model::{
        job_change::Uid,
        policy_entry::{MissingPolicy, PolicyEntry},
    },
    observe::store::{Effect, Store, StoreState},
};

/// What is kept of every policy.
#[derive(Debug)]
pub(super) struct KnownPolicy {
    reference: PolicyRef,
    generation: i64,
    /// Why it cannot be parsed.
    unreadable: Option<String>,
    status: PolicyStatus,
}

/// The policies of a list that is not complete yet. The content of those without room is dropped while the list is read.
#[derive(Debug, Default)]
pub(crate) struct ListedPolicies {
    known: BTreeMap<Uid, KnownPolicy>,
    rules: PolicyIndex<Uid>,
}

impl ListedPolicies {
    /// Adds a policy.
    pub(super) fn push(&mut self, entry: PolicyEntry) {
        let (known, policy) = split(entry);
        let uid = known.reference.uid.clone();
        policy.into_iter().for_each(|policy| self.rules.collect(uid.clone(), policy));
        self.known.insert(uid, known);
    }
}

/// What is kept of a policy in any case, and its content.
fn split(entry: PolicyEntry) -> (KnownPolicy, Option<Arc<Policy>>) {
    let PolicyEntry { reference, generation, policy, status } = entry;
    let (policy, unreadable) = match policy {
        Ok(policy) => (Some(policy), None),
        Err(MissingPolicy::Unreadable(error)) => (None, Some(error)),
        Err(MissingPolicy::NoRoom | MissingPolicy::Awaited) => (None, None),
    };
    (KnownPolicy { reference, generation, unreadable, status }, policy)
}

impl StoreState {
    fn entry(&self, known: &KnownPolicy) -> PolicyEntry {
        let uid = &known.reference.uid;
        let policy = match (&known.unreadable, self.rules.get(uid)) {
            (Some(error), _) => Err(MissingPolicy::Unreadable(error.clone())),
            (None, Some(policy)) => Ok(policy.clone()),
            (None, None) if self.rules.awaited().contains(uid) => Err(MissingPolicy::Awaited),
            (None, None) => Err(MissingPolicy::NoRoom),
        };
        let (reference, generation, status) =
            (known.reference.clone(), known.generation, known.status.clone());
        PolicyEntry { reference, generation, policy, status }
    }

    /// Replaces what is known of a policy; returns whether its spec is another one.
    fn put_known(&mut self, known: KnownPolicy) -> bool {
        let generation = known.generation;
        let before = self.policies.insert(known.reference.uid.clone(), known);
        before.is_none_or(|old| old.generation != generation)
    }

    fn remove_known(&mut self, is_gone: impl Fn(&PolicyRef) -> bool) -> bool {
        let before = self.policies.len();
        self.policies.retain(|_, known| !is_gone(&known.reference));
        let Self { policies, refusals, .. } = self;
        refusals.retain(|uid, _| policies.contains_key(uid));
        policies.len() != before
    }

    /// Other policies may apply than `before`. Only Jobs of their namespaces are looked at: a tenant may change the own ones as
    /// often as he likes, and everybody waits meanwhile.
    fn rules_changed(&mut self, before: &PolicySet) {
        let uids: Vec<Uid> = match changed_namespaces(before, self.rules.all()) {
            Some(names) => names.into_iter().flat_map(|name| self.index.in_namespace(name)).collect(),
            None => self.index.uids(),
        };
        for uid in &uids {
            self.index.regroup(uid, &self.rules);
            self.lacks_labels |= self.index.lacks_labels(uid, &self.rules);
        }
    }
}

/// The namespaces of the policies that only one of the sets has; none if one of these policies is of the cluster.
fn changed_namespaces<'a>(before: &'a PolicySet, now: &'a PolicySet) -> Option<BTreeSet<&'a str>> {
    let not_in = |other: &PolicySet| {
        let others: HashSet<*const Policy> = other.iter().map(Arc::as_ptr).collect();
        move |policy: &&Arc<Policy>| !others.contains(&Arc::as_ptr(policy))
    };
    let changed = before.iter().filter(not_in(now)).chain(now.iter().filter(not_in(before)));
    changed.map(|policy| policy.reference.namespace.as_deref()).collect()
}

impl Store {
    /// All policies that apply, in any mode.
    pub(crate) fn policies(&self) -> Arc<PolicySet> {
        self.state.lock().rules.all().clone()
    }

    pub(crate) fn enforced(&self) -> Arc<PolicySet> {
        self.state.lock().rules.enforced().clone()
    }

    /// All policies as they stand in the cluster, unreadable ones and those without room included.
    pub(crate) fn policy_entries(&self) -> Vec<PolicyEntry> {
        let state = self.state.lock();
        state.policies.values().map(|known| state.entry(known)).collect()
    }

    /// Whether a policy that may apply in this namespace cannot be read, or not yet, so that what it asks for is not known.
    pub(crate) fn has_unreadable_policy(&self, namespace: &str) -> bool {
        let here = |reference: &PolicyRef| reference.namespace.as_deref().is_none_or(|own| own == namespace);
        let state = self.state.lock();
        let awaited = state.rules.awaited();
        state.policies.iter().any(|(uid, known)| {
            here(&known.reference) && (known.unreadable.is_some() || awaited.contains(uid))
        })
    }

    /// Adds or replaces a policy; returns whether its spec changed.
    pub fn put_policy(&self, entry: PolicyEntry) -> bool {
        self.update(|state| {
            let (known, policy) = split(entry);
            let uid = known.reference.uid.clone();
            let spec_changed = state.put_known(known);
            let applies_anew = policy.is_some() && state.rules.awaited().contains(&uid);
            let before = state.rules.all().clone();
            if state.rules.put(uid, policy) {
                state.rules_changed(&before);
            }
            (spec_changed || applies_anew, Effect::Changed)
        })
    }

    /// Replaces all policies of a kind by those of a list; returns whether that changes the spec of one.
    pub(super) fn replace_policies(&self, kind: PolicyKind, listed: ListedPolicies) -> bool {
        self.update(|state| {
            let ListedPolicies { known, rules } = listed;
            let seen: BTreeSet<Uid> = known.keys().cloned().collect();
            let mut changed = false;
            for known in known.into_values() {
                changed |= state.put_known(known);
            }
            let before = state.rules.all().clone();
            let StoreState { policies, rules: applying, .. } = state;
            let of_kind = |uid: &Uid| policies.get(uid).is_some_and(|known| known.reference.kind == kind);
            applying.replace(of_kind, rules);
            changed |= state.remove_known(|known| known.kind == kind && !seen.contains(&known.uid));
            state.rules_changed(&before);
            (changed, Effect::Changed)
        })
    }

    /// Records a status that was just written, until the watch delivers it.
    pub(crate) fn put_status(&self, uid: &str, generation: i64, status: PolicyStatus) {
        self.update(|state| {
            if let Some(known) = state.policies.get_mut(uid).filter(|known| known.generation == generation) {
                known.status = status;
            }
            ((), Effect::Unchanged)
        });
    }

    /// Removes policies for which `is_gone` holds; returns whether there were any.
    pub(crate) fn remove_policies(&self, is_gone: impl Fn(&PolicyRef) -> bool) -> bool {
        self.update(|state| {
            let removed = state.remove_known(is_gone);
            let before = state.rules.all().clone();
            let StoreState { policies, rules, .. } = state;
            if rules.retain(|uid| policies.contains_key(uid)) {
                // Others may apply now, for which there was no room.
                state.rules_changed(&before);
            }
            (removed, removed.into())
        })
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::{
        job::snapshot::JobSnapshot,
        policy::{label_keys::LabelKeys, reference::Labels},
        testing::policies::{cluster, job_policy},
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::test_support::policy_entry;

    fn by(key: &str) -> Value {
        json!({"group": {"type": "Labels", "labelKeys": [key]}})
    }

    /// The only policy of a namespace, whose name is its uid.
    fn policy_of(namespace: &str, generation: i64, spec: Value) -> Arc<Policy> {
        let metadata =
            json!({"name": "p", "namespace": namespace, "uid": namespace, "generation": generation});
        job_policy(metadata, spec)
    }

    /// A Job with so many labels.
    fn job(namespace: &str, uid: &str, labels: usize) -> JobSnapshot {
        JobSnapshot {
            namespace: namespace.into(),
            name: uid.into(),
            uid: uid.into(),
            labels: (0..labels).map(|n| (format!("l{n:02}"), "x".to_owned())).collect(),
            ..JobSnapshot::default()
        }
    }

    #[test]
    fn a_policy_of_one_namespace_causes_no_look_at_the_jobs_of_others() {
        let store = Store::default();
        for namespace in ["ci", "qa"] {
            store.put_namespace(namespace, Labels::new());
            store.put_job(job(namespace, namespace, 1));
        }
        // Labels of this one are dropped.
        store.put_job(job("qa", "large", 50));
        store.put_policy(policy_entry(1, policy_of("qa", 1, json!({"results": {}}))));
        // Changed behind the store's back: what follows from it shows whose Jobs are looked at.
        store.state.lock().rules.put("qa".to_owned(), Some(policy_of("qa", 2, by("l00"))));
        let grouped = || ["ci", "qa"].map(|uid| store.group_of(uid).is_some());
        store.put_policy(policy_entry(1, policy_of("ci", 1, by("l00"))));
        assert_eq!((grouped(), store.lacks_labels()), ([true, false], false));
        store.put_policy(policy_entry(1, cluster("wide", json!({"results": {}}))));
        assert_eq!((grouped(), store.lacks_labels()), ([true, true], true));
        store.remove_policies(|policy| policy.uid == "ci");
        assert_eq!(grouped(), [false, true]);
    }

    /// A Job whose labels were dropped holds the keys by which that was done.
    #[test]
    fn however_often_policies_change_jobs_share_their_label_keys() {
        let store = Store::default();
        store.put_namespace("ci", Labels::new());
        let kept = |uid: &str| -> Arc<LabelKeys> { store.job(uid).unwrap().kept_labels.clone().unwrap() };
        for (generation, mode) in [(1, "Enforce"), (2, "Warn")] {
            let mut spec = by("l40");
            spec["mode"] = mode.into();
            store.put_policy(policy_entry(generation, policy_of("ci", generation, spec)));
            store.put_job(job("ci", mode, 50));
        }
        assert!(Arc::ptr_eq(&kept("Enforce"), &kept("Warn")), "they name the same keys");
        let mut uids = Vec::new();
        for n in 0..20 {
            store.put_policy(policy_entry(3 + n, policy_of("ci", 3 + n, by(&format!("other-{n}")))));
            if std::mem::take(&mut store.state.lock().lacks_labels) {
                uids.iter().for_each(|uid: &String| drop(store.put_job(job("ci", uid, 50))));
            }
            uids.push(format!("job-{n}"));
            store.put_job(job("ci", &uids[uids.len() - 1], 50));
        }
        assert!(uids.iter().all(|uid| Arc::ptr_eq(&kept(uid), &kept("job-0"))));
    }
}
