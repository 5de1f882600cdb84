//! The webhook's metrics. Labels are bounded: never a name that a user chooses.

pub mod certificate_expiry;

use std::time::Duration;

use job_handler_shared::process::telemetry::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
};

use crate::limit::Verdict;

/// Where a review came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `/mutate`.
    Mutate,
    /// `/validate`.
    Validate,
    /// `/warn`.
    Warn,
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Allowed as it came.
    Allowed,
    /// Allowed with changes.
    Patched,
    /// A limit is full, or a group waits.
    Refused,
    /// It cannot be decided now.
    Unavailable,
    /// No review, or no Job.
    Bad,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReviewLabels {
    endpoint: &'static str,
    verdict: &'static str,
}

/// A limit, and the ledger in which it is counted: a namespace, or the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    policy: String,
    limit: String,
    ledger: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    policy: String,
    limit: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: &'static str,
}

impl Endpoint {
    fn as_str(self) -> &'static str {
        match self {
            Self::Mutate => "mutate",
            Self::Validate => "validate",
            Self::Warn => "warn",
        }
    }
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Patched => "patched",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Bad => "bad",
        }
    }
}

/// All of them; clones share them.
#[derive(Clone, Debug)]
pub struct WebhookMetrics {
    reviews: Family<ReviewLabels, Counter>,
    duration: Family<EndpointLabels, Histogram>,
    /// Policies in memory.
    pub policies: Gauge,
    /// Refusals that the sink will never hear of: its socket was away for too long.
    pub refusals_dropped: Counter,
    /// Refusals handed to the sink.
    pub refusals_sent: Counter,
    /// Consistent LISTs of Jobs.
    pub consistent_reads: Counter,
    /// Attempts that were granted and whose Job nobody has seen yet.
    pub pending_attempts: Gauge,
    /// Writes of ledgers that were tried.
    pub ledger_writes: Counter,
    /// Those that came too late: another replica had written.
    pub ledger_conflicts: Counter,
    /// Those that granted nobody anything: only what is over was taken out.
    pub ledger_removals: Counter,
    refusals: Family<RefusalLabels, Counter>,
    decisions: Family<DecisionLabels, Histogram>,
    would_refuse: Family<RefusalLabels, Counter>,
    limit_active: Family<LimitLabels, Gauge>,
    limit_max: Family<LimitLabels, Gauge>,
    limit_pending: Family<LimitLabels, Gauge>,
}

impl WebhookMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        // 100 µs to 13 s: the fast path, and a limit that waits for the apiserver.
        let buckets = || Histogram::new(exponential_buckets(0.0001, 2.0, 18));
        let all = Self {
            reviews: Family::default(),
            duration: Family::new_with_constructor(buckets),
            policies: Gauge::default(),
            refusals_dropped: Counter::default(),
            refusals_sent: Counter::default(),
            consistent_reads: Counter::default(),
            pending_attempts: Gauge::default(),
            ledger_writes: Counter::default(),
            ledger_conflicts: Counter::default(),
            ledger_removals: Counter::default(),
            refusals: Family::default(),
            decisions: Family::new_with_constructor(buckets),
            would_refuse: Family::default(),
            limit_active: Family::default(),
            limit_max: Family::default(),
            limit_pending: Family::default(),
        };
        metrics.register(|registry| {
            registry.register("job_handler_reviews", "Reviews by endpoint and verdict", all.reviews.clone());
            registry.register(
                "job_handler_review_duration_seconds",
                "Time from the body to the answer",
                all.duration.clone(),
            );
            registry.register("job_handler_policies", "Policies in memory", all.policies.clone());
            registry.register(
                "job_handler_refusals_dropped",
                "Refusals that the sink will never hear of",
                all.refusals_dropped.clone(),
            );
            registry.register(
                "job_handler_refusals_sent",
                "Refusals handed to the sink",
                all.refusals_sent.clone(),
            );
            registry.register(
                "job_handler_limit_consistent_reads",
                "Consistent LISTs of Jobs made for decisions about limits",
                all.consistent_reads.clone(),
            );
            registry.register(
                "job_handler_limit_pending_attempts",
                "Attempts that were granted and whose Job was not seen yet",
                all.pending_attempts.clone(),
            );
            registry.register(
                "job_handler_limit_ledger_writes",
                "Writes of ledgers that were tried",
                all.ledger_writes.clone(),
            );
            registry.register(
                "job_handler_limit_ledger_conflicts",
                "Writes of ledgers that came after another replica's",
                all.ledger_conflicts.clone(),
            );
            registry.register(
                "job_handler_limit_ledger_removals",
                "Writes of ledgers that only took out attempts which are over",
                all.ledger_removals.clone(),
            );
            registry.register(
                "job_handler_limit_refusals",
                "Jobs that were refused, by policy and limit",
                all.refusals.clone(),
            );
            registry.register(
                "job_handler_limit_decision_duration_seconds",
                "Time until it was known whether a Job may start, the ledger's write included",
                all.decisions.clone(),
            );
            registry.register(
                "job_handler_limit_would_refuse",
                "Jobs that a policy in mode Warn would have refused or queued",
                all.would_refuse.clone(),
            );
            registry.register(
                "job_handler_limit_active",
                "Jobs that take a slot in a limit's fullest scope, attempts included, as of its last decision",
                all.limit_active.clone(),
            );
            registry.register("job_handler_limit_max", "Slots of a limit", all.limit_max.clone());
            registry.register(
                "job_handler_limit_pending",
                "Attempts without a known outcome in a limit's fullest scope, as of its last decision",
                all.limit_pending.clone(),
            );
            registry.register(
                "job_handler_webhook_build",
                "The webhook's version",
                Info::new([("version", env!("CARGO_PKG_VERSION"))]),
            );
        });
        all
    }

    /// Forgets how full limits were: some of them may be gone.
    pub fn forget_limits(&self) {
        for family in [&self.limit_active, &self.limit_max, &self.limit_pending] {
            family.clear();
        }
    }

    /// Counts a decision about a limit.
    pub fn decision(&self, verdict: &Verdict, took: Duration) {
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

    /// How full a limit's fullest scope was at its last decision.
    pub fn limit(&self, policy: String, limit: &str, ledger: &str, active: usize, max: u32, pending: usize) {
        let labels = LimitLabels { policy, limit: limit.to_owned(), ledger: ledger.to_owned() };
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.limit_active.get_or_create(&labels).set(number(active));
        self.limit_max.get_or_create(&labels).set(i64::from(max));
        self.limit_pending.get_or_create(&labels).set(number(pending));
    }

    /// A policy in mode Warn would have refused or queued a Job.
    pub fn would_refuse(&self, policy: String, limit: &str) {
        self.would_refuse.get_or_create(&RefusalLabels { policy, limit: limit.to_owned() }).inc();
    }

    /// Counts one review.
    pub fn review(&self, endpoint: Endpoint, verdict: Outcome, took: Duration) {
        let (endpoint, verdict) = (endpoint.as_str(), verdict.as_str());
        self.reviews.get_or_create(&ReviewLabels { endpoint, verdict }).inc();
        self.duration.get_or_create(&EndpointLabels { endpoint }).observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_dashboards() {
        let metrics = Metrics::default();
        let ours = WebhookMetrics::new(&metrics);
        ours.review(Endpoint::Mutate, Outcome::Patched, Duration::from_millis(1));
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
