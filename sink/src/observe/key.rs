//! The key of a reconcile.

use crate::{
    model::job_change::{GroupKey, Uid},
    observe::store::Store,
    runtime::work_queue::Queue,
};

/// Reconciles in progress, including those that wait for container logs.
pub(crate) const MAX_IN_PROGRESS: usize = 1_024;
/// Reconciles in progress for one namespace.
const MAX_PER_NAMESPACE: usize = MAX_IN_PROGRESS / 2;

/// What a reconcile is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A Job, also a deleted one, and its result.
    Job(Uid),
    /// The Jobs of a group.
    Group(GroupKey),
}

impl Key {
    /// A work queue that serves namespaces in turn.
    pub fn queue(store: &Store) -> Queue<Self> {
        let store = store.clone();
        Queue::with_lanes(MAX_PER_NAMESPACE, move |key| match key {
            Self::Job(uid) => store.namespace_of(uid).into(),
            Self::Group((namespace, _)) => namespace.as_str().into(),
        })
    }
}
