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
    /// A client with the sink's rights.
    pub client: Client,
    /// Filled by the watches.
    pub store: Store,
    /// Reconciles to run.
    pub queue: Queue<Key>,
    /// The namespace that job-handler runs in.
    pub namespace: Arc<str>,
    /// Notified when the policies changed and everything has to be reconciled again.
    pub resync: Arc<Notify>,
    /// Counts created and finished Jobs.
    pub metrics: SinkMetrics,
}

impl Context {
    /// Whether Jobs of this namespace are never touched.
    pub(crate) fn is_excluded(&self, namespace: &str) -> bool {
        keys::EXCLUDED_NAMESPACES.contains(&namespace) || namespace == &*self.namespace
    }

    /// Stores a Job and enqueues what its change may affect. An unknown Job counts as created, except in a list.
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
