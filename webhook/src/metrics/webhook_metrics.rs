//! All metrics of the webhook, and how they are recorded.

use std::time::Duration;

use job_handler_shared::process::telemetry::Metrics;
use prometheus_client::metrics::{
    counter::Counter,
    family::Family,
    gauge::Gauge,
    histogram::{Histogram, exponential_buckets},
    info::Info,
};

use crate::{
    limit::{Verdict, scopes::HolderKind},
    metrics::labels::{
        DecisionLabels, Endpoint, EndpointLabels, HeldSlotLabels, RefusalLabels, ReviewLabels, ReviewVerdict,
        WebhookLimitLabels,
    },
};

/// All metrics of the webhook. Clones share their state.
#[derive(Clone, Debug)]
pub struct WebhookMetrics {
    reviews: Family<ReviewLabels, Counter>,
    duration: Family<EndpointLabels, Histogram>,
    pub(crate) policies: Gauge,
    /// Requests to paths without a valid secret.
    pub(crate) unknown_paths: Counter,
    /// Refusals that never reached the sink, because its socket was unavailable for too long.
    pub refusals_dropped: Counter,
    /// Refusals that were sent to the sink.
    pub refusals_sent: Counter,
    /// Consistent reads of Jobs.
    pub(crate) consistent_reads: Counter,
    /// Granted attempts whose outcome is not known yet.
    pub(crate) pending_attempts: Gauge,
    /// Attempted writes of ledgers.
    pub(crate) ledger_writes: Counter,
    /// Ledger writes that failed because another replica wrote first.
    pub(crate) ledger_conflicts: Counter,
    /// Ledger writes that granted nothing and only removed resolved attempts.
    pub(crate) ledger_removals: Counter,
    refusals: Family<RefusalLabels, Counter>,
    decisions: Family<DecisionLabels, Histogram>,
    would_refuse: Family<RefusalLabels, Counter>,
    limit_active: Family<WebhookLimitLabels, Gauge>,
    limit_max: Family<WebhookLimitLabels, Gauge>,
    limit_slots: Family<HeldSlotLabels, Gauge>,
}

impl WebhookMetrics {
    /// Creates and registers the metrics.
    pub fn new(metrics: &Metrics) -> Self {
        // 100 µs to 13 s: from a review that is answered from memory to one that waits for the apiserver.
        let buckets = || Histogram::new(exponential_buckets(0.0001, 2.0, 18));
        metrics.register(|registry| {
            registry.register(
                "job_handler_webhook_build",
                "Version of the webhook",
                Info::new([("version", env!("CARGO_PKG_VERSION"))]),
            );
        });
        Self {
            reviews: metrics.create("job_handler_reviews", "Admission reviews, by endpoint and verdict"),
            duration: metrics.add(
                "job_handler_review_duration_seconds",
                "Time from reading a review to its response in seconds, by endpoint",
                Family::new_with_constructor(buckets),
            ),
            policies: metrics.create("job_handler_policies", "Policies that this replica has in memory"),
            unknown_paths: metrics.create(
                "job_handler_unknown_paths",
                "Requests that were refused because their path has no valid secret",
            ),
            refusals_dropped: metrics.create(
                "job_handler_refusals_dropped",
                "Refusals that were dropped before they reached the sink",
            ),
            refusals_sent: metrics.create("job_handler_refusals_sent", "Refusals that were sent to the sink"),
            consistent_reads: metrics.create(
                "job_handler_limit_consistent_reads",
                "Consistent reads of Jobs (GETs or a LIST) for decisions about limits",
            ),
            pending_attempts: metrics.create(
                "job_handler_limit_pending_attempts",
                "Granted attempts whose outcome is not known yet",
            ),
            ledger_writes: metrics
                .create("job_handler_limit_ledger_writes", "Attempted writes of JobLedgers"),
            ledger_conflicts: metrics.create(
                "job_handler_limit_ledger_conflicts",
                "Writes of JobLedgers that failed because another replica wrote first",
            ),
            ledger_removals: metrics.create(
                "job_handler_limit_ledger_removals",
                "Writes of JobLedgers that only removed resolved attempts",
            ),
            refusals: metrics.create("job_handler_limit_refusals", "Refused Jobs, by policy and limit"),
            decisions: metrics.add(
                "job_handler_limit_decision_duration_seconds",
                "Time to decide about a limit in seconds, including the write of the JobLedger, by verdict",
                Family::new_with_constructor(buckets),
            ),
            would_refuse: metrics.create(
                "job_handler_limit_would_refuse",
                "Jobs that a policy in mode Warn would have refused or queued, by policy and limit",
            ),
            limit_active: metrics.create(
                "job_handler_limit_active",
                "Used slots in the fullest scope of a limit at its last decision, including pending attempts",
            ),
            limit_max: metrics.create("job_handler_limit_max", "Maximum number of active Jobs of a limit"),
            limit_slots: metrics.create(
                "job_handler_limit_slots",
                "Used slots in the fullest scope of a limit at its last decision, by what holds them",
            ),
        }
    }

    /// Clears the gauges of all limits, because some limits may no longer exist.
    pub(crate) fn clear_limits(&self) {
        self.limit_active.clear();
        self.limit_max.clear();
        self.limit_slots.clear();
    }

    /// Counts a decision about a limit.
    pub(crate) fn decision(&self, verdict: &Verdict, took: Duration) {
        let word = match verdict {
            Verdict::Granted => "granted",
            Verdict::Refused(refused) => {
                let (policy, limit) = (refused.policy.to_string(), refused.limit.clone());
                self.refusals.get_or_create(&RefusalLabels { policy, limit }).inc();
                "refused"
            }
            Verdict::Unavailable { .. } => "unavailable",
            Verdict::TooMany { .. } => "too_many",
        };
        self.decisions.get_or_create(&DecisionLabels { verdict: word }).observe(took.as_secs_f64());
    }

    /// Sets the gauges of a limit to its fullest scope: used slots, its maximum, and the used ones by holder
    /// ([`HolderKind::NAMES`]).
    pub(crate) fn limit(
        &self,
        policy: String,
        limit: &str,
        ledger: &str,
        (used, max, by_kind): (usize, u32, &[usize]),
    ) {
        let labels = WebhookLimitLabels { policy, limit: limit.to_owned(), ledger: ledger.to_owned() };
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.limit_active.get_or_create(&labels).set(number(used));
        self.limit_max.get_or_create(&labels).set(i64::from(max));
        for (held_by, used) in HolderKind::NAMES.into_iter().zip(by_kind) {
            let WebhookLimitLabels { policy, limit, ledger } = labels.clone();
            let labels = HeldSlotLabels { policy, limit, ledger, held_by };
            self.limit_slots.get_or_create(&labels).set(number(*used));
        }
    }

    /// Counts a Job that a policy in mode Warn would have refused or queued.
    pub(crate) fn would_refuse(&self, policy: String, limit: &str) {
        self.would_refuse.get_or_create(&RefusalLabels { policy, limit: limit.to_owned() }).inc();
    }

    /// Counts one review.
    pub(crate) fn review(&self, endpoint: Endpoint, verdict: ReviewVerdict, took: Duration) {
        let (endpoint, verdict) = (endpoint.as_str(), verdict.as_str());
        self.reviews.get_or_create(&ReviewLabels { endpoint, verdict }).inc();
        self.duration.get_or_create(&EndpointLabels { endpoint }).observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_names_match_the_dashboards() {
        let metrics = Metrics::default();
        let ours = WebhookMetrics::new(&metrics);
        ours.review(Endpoint::Mutate, ReviewVerdict::Patched, Duration::from_millis(1));
        ours.refusals_dropped.inc();
        let text = metrics.encode().unwrap();
        for line in [
            "job_handler_reviews_total{endpoint=\"mutate\",verdict=\"patched\"} 1",
            "job_handler_refusals_dropped_total 1",
            "job_handler_review_duration_seconds_count{endpoint=\"mutate\"} 1",
            "job_handler_webhook_build_info{version=\"",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
