//! What the two endpoints decide by.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use job_handler_shared::{
    combine::{Labels, PolicySet},
    keys,
    refusal::Refusal,
    telemetry::Metrics,
};

use crate::{
    lease::Liveness, limit::Limiter, metrics::WebhookMetrics, policies::Policies, refusals::Refusals,
    warn::Onlooker,
};

/// Within this time the entries of several policies ask about one create; its refusal is told once.
const SAME_CREATE: Duration = Duration::from_secs(10);

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
    pub refusals: Option<Refusals>,
    /// Counters.
    pub metrics: WebhookMetrics,
    /// Sees the Jobs for policies in mode Warn; none = such policies tell nothing of limits.
    pub onlooker: Option<Onlooker>,
    /// Our own namespace: its Jobs are left alone.
    pub own_namespace: Arc<str>,
    told: Arc<Mutex<HashMap<String, Instant>>>,
}

impl State {
    /// With all of its parts.
    pub fn new(
        policies: Policies,
        limiter: Option<Arc<dyn Limiter>>,
        liveness: Liveness,
        refusals: Option<Refusals>,
        metrics: WebhookMetrics,
        own_namespace: &str,
    ) -> Self {
        Self {
            policies,
            limiter,
            liveness,
            refusals,
            metrics,
            onlooker: None,
            own_namespace: own_namespace.into(),
            told: Arc::default(),
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
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.len() > 1024 {
                told.retain(|_, at| now.duration_since(*at) < SAME_CREATE);
            }
            told.insert(job_uid.to_owned(), now).is_none_or(|at| now.duration_since(at) >= SAME_CREATE)
        };
        if first {
            refusals.tell(refusal());
        }
    }
}
