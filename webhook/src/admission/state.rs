//! What the endpoints share.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_certs::review_path::ReviewPaths;
use job_handler_shared::{
    keys,
    ledger::refusal::Refusal,
    policy::{reference::Labels, set::PolicySet},
    process::telemetry::Metrics,
};
use parking_lot::Mutex;

use crate::{
    admission::job_estimator::JobEstimator,
    cache::{policies::Policies, ttl_map::TtlMap},
    limit::Limiter,
    metrics::WebhookMetrics,
    presence_lease::Liveness,
    refusal_sender::RefusalQueue,
};

/// The webhook entries of several policies may review one create. Within this time, its refusal is reported once.
const REPORT_ONCE_WITHIN: Duration = Duration::from_secs(10);
/// Most Jobs to remember for that. A Job that was evicted may be reported again.
const MAX_REPORTED: usize = 16_384;

/// What the handlers of all endpoints use. Clones share their state.
#[derive(Clone)]
pub struct WebhookState {
    pub(super) policies: Policies,
    /// Decides about attempts. None: no limits (benchmarks of `/mutate`).
    pub(super) limiter: Option<Arc<dyn Limiter>>,
    pub(super) liveness: Liveness,
    /// Queue of refusals for the sink.
    refusals: Option<RefusalQueue>,
    pub(super) metrics: WebhookMetrics,
    /// Estimates the active Jobs for policies in mode Warn. None: their limits are not checked.
    pub(crate) estimator: Option<JobEstimator>,
    /// Which paths are valid. None: paths have no secret (tests and benchmarks without a cluster).
    pub(super) paths: Option<ReviewPaths>,
    own_namespace: Arc<str>,
    /// Uids of Jobs whose refusal was reported.
    reported: Arc<Mutex<TtlMap<()>>>,
}

impl WebhookState {
    /// The state of a webhook in namespace `own_namespace`.
    pub(crate) fn new(
        policies: Policies,
        limiter: Option<Arc<dyn Limiter>>,
        liveness: Liveness,
        refusals: Option<RefusalQueue>,
        metrics: WebhookMetrics,
        own_namespace: &str,
    ) -> Self {
        Self {
            policies,
            limiter,
            liveness,
            refusals,
            metrics,
            estimator: None,
            paths: None,
            own_namespace: own_namespace.into(),
            reported: Arc::new(Mutex::new(TtlMap::new(REPORT_ONCE_WITHIN, MAX_REPORTED, Instant::now()))),
        }
    }

    /// A fixed set of policies, without limiter, Lease and sink, for tests and benchmarks.
    pub fn fixed(set: PolicySet, namespaces: impl IntoIterator<Item = (String, Labels)>) -> Self {
        let metrics = WebhookMetrics::new(&Metrics::default());
        let policies = Policies::fixed(set, namespaces);
        Self::new(policies, None, Liveness::always(), None, metrics, keys::NAMESPACE)
    }

    /// The same, but only reviews with a valid secret in their path are answered.
    #[must_use]
    pub fn with_paths(self, paths: ReviewPaths) -> Self {
        Self { paths: Some(paths), ..self }
    }

    /// The same with another limiter.
    #[must_use]
    pub fn with_limiter(self, limiter: Arc<dyn Limiter>) -> Self {
        Self { limiter: Some(limiter), ..self }
    }

    /// Whether Jobs of `namespace` are never touched. The webhook configurations exclude these namespaces, too.
    pub(super) fn is_excluded(&self, namespace: &str) -> bool {
        namespace == &*self.own_namespace || keys::EXCLUDED_NAMESPACES.contains(&namespace)
    }

    /// Reports a decision to the sink, once for each `key`.
    pub(super) fn report_once(&self, key: &str, refusal: impl FnOnce() -> Refusal) {
        let Some(refusals) = &self.refusals else { return };
        let now = Instant::now();
        let is_new = {
            let mut reported = self.reported.lock();
            let is_new = reported.get(key, now).is_none();
            if is_new {
                reported.insert(key.to_owned(), (), now);
            }
            is_new
        };
        if is_new {
            refusals.push(refusal());
        }
    }
}
