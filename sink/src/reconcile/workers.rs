//! The worker loop: takes keys from the queue and reconciles them concurrently, each in its own task and span.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use tokio::task::{Id, JoinSet};
use tracing::{Instrument, Span, field, info_span};

use crate::{
    observe::key::{Key, MAX_IN_PROGRESS},
    reconcile::{
        error::{JobReconcileError, TIMEOUT},
        job::JobReconciler,
    },
    runtime::concurrency::{WorkerPermit, WorkerPermits},
};

/// Concurrent reconciles. One that only waits for container logs does not count.
const CONCURRENCY: usize = 24;

impl JobReconciler {
    /// Processes the queue until it is dropped, which drops all reconciles; the next leader continues from what is
    /// stored.
    pub async fn run(self) -> Infallible {
        let reconciler = Arc::new(self);
        let worker_permits = WorkerPermits::new(CONCURRENCY);
        let mut tasks: JoinSet<(Key, bool)> = JoinSet::new();
        let mut running: HashMap<Id, Key> = HashMap::new();
        loop {
            tokio::select! {
                Some(ended) = tasks.join_next_with_id(), if !tasks.is_empty() => match ended {
                    Ok((id, (key, done))) => {
                        running.remove(&id);
                        reconciler.queue.done(key, done);
                    }
                    Err(error) => {
                        tracing::error!("a reconcile panicked: {error}");
                        if let Some(key) = running.remove(&error.id()) {
                            reconciler.queue.done(key, false);
                        }
                    }
                },
                (permit, key) = async { (worker_permits.acquire().await, reconciler.queue.next().await) }, if tasks.len() < MAX_IN_PROGRESS => {
                    let (reconciler, own) = (reconciler.clone(), key.clone());
                    let span = reconciler.span(&key);
                    let task = tasks.spawn(
                        async move {
                            let done = reconciler.process(&own, permit).await;
                            (own, done)
                        }
                        .instrument(span),
                    );
                    running.insert(task.id(), key);
                }
            }
        }
    }

    /// Names the object in each log line of its reconcile.
    fn span(&self, key: &Key) -> Span {
        match key {
            Key::Job(uid) => {
                let span = info_span!("reconcile", namespace = field::Empty, job = field::Empty, uid);
                let job =
                    self.store.job(uid).or_else(|| self.store.deleted_job(uid).map(|deleted| deleted.job));
                if let Some(job) = job {
                    span.record("namespace", &job.namespace).record("job", &job.name);
                }
                span
            }
            Key::Group((namespace, group)) => info_span!("reconcile", namespace, group = group.value),
        }
    }

    /// Returns whether the key is done; otherwise it is retried.
    async fn process(&self, key: &Key, permit: WorkerPermit) -> bool {
        let reconcile = async {
            match key {
                Key::Job(uid) => self.reconcile_job(uid).await,
                Key::Group(group) => self.reconcile_group(group).await,
            }
        };
        let takes_long = || self.queue.record_lane_failure(key);
        let outcome = permit.run(TIMEOUT, Box::pin(reconcile), takes_long).await;
        let Err(error) = outcome.unwrap_or(Err(JobReconcileError::TimedOut)) else { return true };
        if error.concerns_namespace() {
            self.queue.record_lane_failure(key);
        }
        let operation = match key {
            Key::Job(_) => "harvest",
            Key::Group(_) => "prune",
        };
        self.metrics.action_failed(operation);
        match error {
            JobReconcileError::Changed(_) => tracing::debug!("{operation}: {error}; retrying"),
            // A namespace that is being deleted refuses writes, until its Jobs are gone too.
            error if error.is_terminating() => tracing::debug!("{operation}: {error}"),
            error => tracing::warn!("{operation} failed: {error}; retrying"),
        }
        false
    }
}
