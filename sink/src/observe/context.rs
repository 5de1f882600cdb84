//! What every watch needs.

use std::sync::Arc;

use job_handler_shared::{job::snapshot::JobSnapshot, keys};
use kube::Client;
use tokio::sync::Notify;

use crate::{
    metrics::SinkMetrics,
    observe::{key::Key, store::Store},
    runtime::work_queue::Queue,
};

/// What every watch needs.
#[derive(Clone)]
pub struct Context {
    /// Talks to the cluster.
    pub client: Client,
    /// Takes in what is seen.
    pub store: Store,
    /// Takes in what is to be looked at.
    pub queue: Queue<Key>,
    /// The pair's own namespace.
    pub namespace: Arc<str>,
    /// Signals that everything has to be reconciled again, since the policies have changed.
    pub resync: Arc<Notify>,
    /// Counts what is seen.
    pub metrics: SinkMetrics,
}

impl Context {
    /// Whether Jobs of this namespace are never touched.
    pub fn is_excluded(&self, namespace: &str) -> bool {
        keys::EXCLUDED_NAMESPACES.contains(&namespace) || namespace == &*self.namespace
    }

    /// Takes in a Job as it is now, and asks for a look at what that may change. One that is not known is new, but in a
    /// list.
    pub(crate) fn job_seen(&self, snapshot: JobSnapshot, listing: bool) {
        let change = self.store.put_job(snapshot.clone());
        if change.new && !listing {
            self.metrics.job_created();
        }
        if change.finished_now {
            let effective = self.store.effective(&snapshot);
            let harvested = effective.is_some_and(|effective| effective.results.is_some());
            self.metrics.job_finished(&snapshot, harvested);
        }
        if snapshot.finished.is_some() {
            self.queue.add(Key::Job(snapshot.uid));
        }
        if (change.new || change.finished_now)
            && let Some(group) = change.group
        {
            self.queue.add(Key::Group(group));
        }
    }
}
