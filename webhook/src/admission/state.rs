//! What the two endpoints decide by.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

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

/// Within this time the entries of several policies ask about one create; its refusal is told once.
const SAME_CREATE: Duration = Duration::from_secs(10);
/// So many are remembered for that; whoever comes after them is told of again.
const TOLD: usize = 16_384;

/// Clones share everything.
#[derive(Clone)]
pub struct State {
    /// Policies and namespaces.
    pub policies: Policies,
    /// Decides about attempts; none = nothing is limited (benchmarks of `/mutate`).
    pub limiter: Option<Arc<dyn Limiter>>,
    /// Whether others still count on this replica.
    pub liveness: Liveness,
    /// The way to the sink.
    pub refusals: Option<RefusalQueue>,
    /// Counters.
    pub metrics: WebhookMetrics,
    /// Estimates the active Jobs for policies in mode Warn. None: their limits are not checked.
    pub(crate) estimator: Option<JobEstimator>,
    /// Our own namespace: its Jobs are left alone.
    pub own_namespace: Arc<str>,
    told: Arc<Mutex<TtlMap<()>>>,
}

impl State {
    /// With all of its parts.
    pub fn new(
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
            own_namespace: own_namespace.into(),
            told: Arc::new(Mutex::new(TtlMap::new(SAME_CREATE, TOLD, Instant::now()))),
        }
    }

    /// With a fixed set of policies and nobody to talk to: for tests and benchmarks.
    pub fn fixed(set: PolicySet, namespaces: impl IntoIterator<Item = (String, Labels)>) -> Self {
        let metrics = WebhookMetrics::new(&Metrics::default());
        let policies = Policies::fixed(set, namespaces);
        Self::new(policies, None, Liveness::always(), None, metrics, keys::NAMESPACE)
    }

    /// Namespaces whose Jobs are never touched. The webhook configurations leave them out already.
    pub fn is_excluded(&self, namespace: &str) -> bool {
        namespace == &*self.own_namespace || keys::EXCLUDED_NAMESPACES.contains(&namespace)
    }

    /// Tells the sink, once for each Job.
    pub fn tell(&self, job_uid: &str, refusal: impl FnOnce() -> Refusal) {
        let Some(refusals) = &self.refusals else { return };
        let now = Instant::now();
        let first = {
            let mut told = self.told.lock();
            let first = told.get(job_uid, now).is_none();
            if first {
                told.insert(job_uid.to_owned(), (), now);
            }
            first
        };
        if first {
            refusals.push(refusal());
        }
    }
}
