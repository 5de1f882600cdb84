//! The key of a reconcile.

use crate::{
    model::job_change::{GroupKey, Uid},
    observe::store::Store,
    runtime::work_queue::Queue,
};

/// Jobs that are under way: those that are worked on, and those that wait for their nodes' logs.
pub(crate) const UNDER_WAY: usize = 1_024;
/// The same of one namespace.
const OF_ONE_NAMESPACE: usize = UNDER_WAY / 2;

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A Job, there or gone, and its result.
    Job(Uid),
    /// The Jobs of a group.
    Group(GroupKey),
}

impl Key {
    /// A queue whose lanes are namespaces.
    pub fn queue(store: &Store) -> Queue<Self> {
        let store = store.clone();
        Queue::in_lanes(OF_ONE_NAMESPACE, move |key| match key {
            Self::Job(uid) => store.namespace_of(uid).into(),
            Self::Group((namespace, _)) => namespace.as_str().into(),
        })
    }
}
