//! The policies of the store.

use std::sync::Arc;

use job_handler_shared::policy::{reference::PolicyRef, set::PolicySet, status::PolicyStatus};

use crate::{
    model::policy_entry::PolicyEntry,
    observe::store::{Effect, Store, StoreState},
};

impl StoreState {
    /// Completes the rules by policies that have room again; their entries are whole.
    fn put_awaited(&mut self) {
        let whole =
            |uid: &String| Some((uid.clone(), Some(self.entries.get(uid)?.policy.as_ref().ok()?.clone())));
        let awaited: Vec<_> = self.rules.awaited().iter().filter_map(whole).collect();
        self.rules.put_all(awaited);
    }
}

impl Store {
    /// All policies that can be read, in any mode.
    pub(crate) fn policies(&self) -> Arc<PolicySet> {
        self.state.lock().rules.all().clone()
    }

    pub(crate) fn enforced(&self) -> Arc<PolicySet> {
        self.state.lock().rules.enforced().clone()
    }

    /// All policies as they stand in the cluster, unreadable ones included.
    pub(crate) fn policy_entries(&self) -> Vec<PolicyEntry> {
        self.state.lock().entries.values().cloned().collect()
    }

    /// Whether a policy that may apply in this namespace cannot be read, so that what it asks for is not known.
    pub(crate) fn has_unreadable_policy(&self, namespace: &str) -> bool {
        let here = |reference: &PolicyRef| reference.namespace.as_deref().is_none_or(|own| own == namespace);
        self.state.lock().entries.values().any(|entry| entry.policy.is_err() && here(&entry.reference))
    }

    /// Adds or replaces a policy; returns whether its spec changed.
    pub fn put_policy(&self, entry: PolicyEntry) -> bool {
        self.put_policies([entry])
    }

    /// Adds or replaces policies; returns whether the spec of one changed.
    pub(crate) fn put_policies(&self, entries: impl IntoIterator<Item = PolicyEntry>) -> bool {
        self.update(|state| {
            let (mut spec_changed, mut policies) = (false, Vec::new());
            for entry in entries {
                let (uid, generation) = (entry.reference.uid.clone(), entry.generation);
                policies.push((uid.clone(), entry.policy.as_ref().ok().cloned()));
                let before = state.entries.insert(uid, entry);
                spec_changed |= before.is_none_or(|old| old.generation != generation);
            }
            if state.rules.put_all(policies) {
                state.put_awaited();
                state.index.regroup_all(&state.rules);
                state.lacks_labels |= state.index.lacks_labels(&state.rules);
            }
            (spec_changed, Effect::Changed)
        })
    }

    /// Records a status that was just written, until the watch delivers it.
    pub(crate) fn put_status(&self, uid: &str, generation: i64, status: PolicyStatus) {
        self.update(|state| {
            if let Some(entry) = state.entries.get_mut(uid).filter(|entry| entry.generation == generation) {
                entry.status = status;
            }
            ((), Effect::Unchanged)
        });
    }

    /// Removes policies for which `is_gone` holds; returns whether there were any.
    pub(crate) fn remove_policies(&self, is_gone: impl Fn(&PolicyRef) -> bool) -> bool {
        self.update(|state| {
            let before = state.entries.len();
            state.entries.retain(|_, entry| !is_gone(&entry.reference));
            let StoreState { entries, refusals, rules, .. } = state;
            refusals.retain(|uid, _| entries.contains_key(uid));
            let removed = entries.len() != before;
            if rules.retain(|uid| entries.contains_key(uid)) {
                state.put_awaited();
                state.index.regroup_all(&state.rules);
                // Others may apply now, for which there was no room.
                state.lacks_labels |= state.index.lacks_labels(&state.rules);
            }
            (removed, removed.into())
        })
    }
}
