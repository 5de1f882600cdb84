//! Estimates which Jobs are active, for policies in mode Warn.
//!
//! The estimate combines the watch cache of Jobs with the Jobs that were reviewed a moment ago and are not in the cache
//! yet.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::{job::snapshot::JobSnapshot, ledger::crd::JobLedgerSpec};
use parking_lot::{Mutex, MutexGuard};

use crate::ledger::shared::LedgerContext;

/// A reviewed Job is in the watch cache after this time, or it was never created.
const RECENT: Duration = Duration::from_secs(1);

/// Estimates the active Jobs. Clones share their state.
#[derive(Clone)]
pub(crate) struct JobEstimator {
    ledgers: Arc<LedgerContext>,
    recent: Arc<Mutex<RecentJobs>>,
}

/// Reviewed Jobs by namespace and name, with the time of the review.
type RecentJobs = HashMap<String, (Instant, Arc<JobSnapshot>)>;

/// The Jobs of one namespace or of the cluster, and the namespace's ledger.
pub(super) struct JobEstimate {
    pub(super) jobs: Vec<Arc<JobSnapshot>>,
    pub(super) ledger: JobLedgerSpec,
}

impl JobEstimator {
    /// Reads the limiter's caches of Jobs and ledgers.
    pub(crate) fn new(ledgers: Arc<LedgerContext>) -> Self {
        Self { ledgers, recent: Arc::default() }
    }

    /// Estimates the Jobs of `namespace`, or of the cluster.
    ///
    /// # Errors
    /// While the watch cache is relisting.
    pub(super) fn estimate(&self, namespace: Option<&str>) -> Result<JobEstimate, String> {
        let (_, mut jobs) =
            self.ledgers.cache.snapshot(namespace).ok_or("the watch cache of Jobs is relisting")?;
        let cached: HashSet<String> = jobs.iter().map(|job| job.key()).collect();
        let recent = self.recent();
        let in_scope = recent.values().filter(|(_, job)| namespace.is_none_or(|own| job.namespace == own));
        jobs.extend(in_scope.filter(|(_, job)| !cached.contains(&job.key())).map(|(_, job)| job.clone()));
        let ledger = namespace.and_then(|namespace| self.ledgers.known_ledgers.latest(namespace));
        let ledger = ledger.map(|known| known.ledger.spec.clone()).unwrap_or_default();
        Ok(JobEstimate { jobs, ledger })
    }

    /// Counts an admitted Job until the watch cache has it.
    pub(super) fn add(&self, job: JobSnapshot) {
        self.recent().insert(job.key(), (Instant::now(), Arc::new(job)));
    }

    fn recent(&self) -> MutexGuard<'_, RecentJobs> {
        let mut recent = self.recent.lock();
        recent.retain(|_, (at, _)| at.elapsed() < RECENT);
        recent
    }
}
