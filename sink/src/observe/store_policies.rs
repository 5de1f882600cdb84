//! The policies of the store.
//!
//! [`PolicyIndex`] has the content of those that apply. Of the others, which whoever may write JobPolicies can make as many
//! and as large as he likes, nothing is kept but name and status.

use std::{
    collections::{BTreeMap, BTreeSet},
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

    /// Other policies apply than before.
    fn rules_changed(&mut self) {
        self.index.regroup_all(&self.rules);
        self.lacks_labels |= self.index.lacks_labels(&self.rules);
    }
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
            if state.rules.put(uid, policy) {
                state.rules_changed();
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
            let StoreState { policies, rules: applying, .. } = state;
            let of_kind = |uid: &Uid| policies.get(uid).is_some_and(|known| known.reference.kind == kind);
            applying.replace(of_kind, rules);
            changed |= state.remove_known(|known| known.kind == kind && !seen.contains(&known.uid));
            state.rules_changed();
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
            let StoreState { policies, rules, .. } = state;
            if rules.retain(|uid| policies.contains_key(uid)) {
                // Others may apply now, for which there was no room.
                state.rules_changed();
            }
            (removed, removed.into())
        })
    }
}
