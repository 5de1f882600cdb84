//! The metrics, with their help texts.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    process::telemetry::Metrics,
    result::{failure::Cause, manifest::Completeness, pending_events::JobPhase},
};
use parking_lot::Mutex;
use prometheus_client::metrics::{
    counter::Counter,
    family::Family,
    gauge::Gauge,
    histogram::{Histogram, exponential_buckets},
    info::Info,
};

use crate::{
    metrics::labels::{
        ActionLabel, LimitLabels, ReasonLabel, ReceiverLabel, ReceiverPhaseLabels, ReceiverReasonLabels,
        StatusLabel,
    },
    model::summary::ClusterSummary,
};

/// The metrics; clones share them. Only the leader counts Jobs, so that sums over replicas are right.
#[derive(Clone, Debug)]
pub struct SinkMetrics {
    leading: Arc<AtomicBool>,
    leader: Gauge<i64, AtomicI64>,
    created: Family<StatusLabel, Counter>,
    durations: Family<StatusLabel, Histogram, fn() -> Histogram>,
    failures: Family<ReasonLabel, Counter>,
    active: Gauge<i64, AtomicI64>,
    lag: Histogram,
    harvested: Family<StatusLabel, Counter>,
    incomplete: Counter,
    truncated: Counter,
    withheld: Counter,
    faults: Family<ActionLabel, Counter>,
    pruned: Counter,
    removed: Family<ReasonLabel, Counter>,
    dropped: Family<ReasonLabel, Counter>,
    queue: Gauge<i64, AtomicI64>,
    limit_queued: Family<LimitLabels, Gauge<i64, AtomicI64>>,
    /// The limits with a `limit_queued` series at present.
    limits: Arc<Mutex<HashMap<(String, String), usize>>>,
    restarts: Histogram,
    lost: Family<ReasonLabel, Counter>,
    oldest_active: Gauge<f64, AtomicU64>,
    unharvested: Gauge<i64, AtomicI64>,
    oldest_unharvested: Gauge<f64, AtomicU64>,
    deadline_used: Gauge<f64, AtomicU64>,
    results_stored: Gauge<i64, AtomicI64>,
    result_bytes: Gauge<i64, AtomicI64>,
    results_incomplete_now: Gauge<i64, AtomicI64>,
    budget_used: Gauge<f64, AtomicU64>,
    events: Family<ReceiverPhaseLabels, Counter>,
    events_failed: Family<ReceiverLabel, Counter>,
    events_pending: Family<ReceiverLabel, Gauge<i64, AtomicI64>>,
    refusals_pending: Family<ReceiverLabel, Gauge<i64, AtomicI64>>,
    events_dropped: Family<ReceiverReasonLabels, Counter>,
}

fn durations() -> Histogram {
    // 1 s to about 4.5 h.
    Histogram::new(exponential_buckets(1.0, 2.0, 15))
}

impl SinkMetrics {
    /// Creates the metrics and registers them.
    pub fn new(metrics: &Metrics) -> Self {
        metrics.register(|registry| {
            registry.register(
                "job_handler_sink_build",
                "Version of this sink",
                Info::new([("version", crate::VERSION)]),
            );
        });
        Self {
            leading: Arc::default(),
            limits: Arc::default(),
            created: metrics.create("k8s_job_creation", "Jobs created, queued or refused, by status"),
            durations: metrics.add(
                "k8s_job_duration_seconds",
                "Time from the start to the end of a Job in seconds, by status",
                Family::new_with_constructor(durations),
            ),
            failures: metrics.create("k8s_job_failures", "Failed Jobs, by reason"),
            active: metrics.create("k8s_active_jobs", "Jobs that are active now"),
            leader: metrics.create("job_handler_leader", "Whether this sink is the leader: 1 or 0"),
            // 10 ms to about 5 min, and beyond.
            lag: metrics.add(
                "job_handler_harvest_lag_seconds",
                "Time from the end of a Job to its stored result in seconds",
                Histogram::new(exponential_buckets(0.01, 2.0, 16)),
            ),
            harvested: metrics.create("job_handler_results", "Results stored, by status of the Job"),
            incomplete: metrics.create(
                "job_handler_results_incomplete",
                "Results stored without some of their logs or pods",
            ),
            truncated: metrics.create(
                "job_handler_results_truncated",
                "Results stored without the parts of logs that exceed their budget",
            ),
            withheld: metrics.create(
                "job_handler_results_withheld",
                "Results stored without logs and messages, because the sink may not write Secrets",
            ),
            faults: metrics.create("job_handler_faults", "Actions that failed and are retried, by action"),
            pruned: metrics.create("job_handler_pruned_jobs", "Jobs deleted as older Jobs of their group"),
            removed: metrics
                .create("job_handler_results_removed", "Stored results deleted by retention, by reason"),
            dropped: metrics.create(
                "job_handler_refusals_dropped",
                "Refusals for which no Event was published, by reason",
            ),
            queue: metrics.create("job_handler_queue_length", "Jobs and groups that wait to be reconciled"),
            limit_queued: metrics.create(
                "job_handler_limit_queued",
                "Queued Jobs that wait for a limit, in all of its scopes",
            ),
            restarts: metrics.add(
                "job_handler_job_restarts",
                "Restarts of the most restarted container of a harvested Job",
                Histogram::new([0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]),
            ),
            lost: metrics.create("job_handler_results_lost", "Results that could not be stored, by reason"),
            oldest_active: metrics
                .create("job_handler_oldest_active_job_seconds", "Age of the longest active Job in seconds"),
            unharvested: metrics
                .create("job_handler_unharvested_jobs", "Finished Jobs whose result is not stored yet"),
            oldest_unharvested: metrics.create(
                "job_handler_oldest_unharvested_job_seconds",
                "Time since the first of the unharvested Jobs finished, in seconds",
            ),
            deadline_used: metrics.create(
                "job_handler_harvest_deadline_used_ratio",
                "Elapsed share (0 to 1) of the harvest deadline of the Job nearest to it",
            ),
            results_stored: metrics.create("job_handler_stored_results", "Results that are stored now"),
            result_bytes: metrics
                .create("job_handler_stored_result_bytes", "Size of all stored results in bytes"),
            results_incomplete_now: metrics.create(
                "job_handler_stored_results_incomplete",
                "Stored results without some of their logs or pods",
            ),
            budget_used: metrics.create(
                "job_handler_result_budget_used_ratio",
                "Used share (0 to 1) of maxBytesPerNamespace in the fullest namespace",
            ),
            events: metrics.create("job_handler_cloudevents", "CloudEvents delivered, by receiver and phase"),
            events_failed: metrics.create(
                "job_handler_cloudevents_failed",
                "Attempts to deliver a CloudEvent that failed, by receiver",
            ),
            events_pending: metrics
                .create("job_handler_cloudevents_pending", "Jobs with CloudEvents to deliver, by receiver"),
            refusals_pending: metrics.create(
                "job_handler_cloudevents_refusals_pending",
                "Refusals with CloudEvents to deliver, by receiver",
            ),
            events_dropped: metrics.create(
                "job_handler_cloudevents_dropped",
                "CloudEvents that will never be delivered, by receiver and reason",
            ),
        }
    }

    pub(crate) fn set_leading(&self, leads: bool) {
        self.leading.store(leads, Ordering::Relaxed);
        self.leader.set(i64::from(leads));
        if !leads {
            self.set_limits_queued(HashMap::new());
        }
    }

    /// Sets the number of queued Jobs of each (policy, limit) and removes the series of all other limits.
    pub(crate) fn set_limits_queued(&self, queued: HashMap<(String, String), usize>) {
        let labels =
            |(policy, limit): &(String, String)| LimitLabels { policy: policy.clone(), limit: limit.clone() };
        let mut limits = self.limits.lock();
        for removed in limits.keys().filter(|known| !queued.contains_key(*known)) {
            self.limit_queued.remove(&labels(removed));
        }
        for (limit, jobs) in &queued {
            self.limit_queued.get_or_create(&labels(limit)).set(i64::try_from(*jobs).unwrap_or(i64::MAX));
        }
        *limits = queued;
    }

    fn leads(&self) -> bool {
        self.leading.load(Ordering::Relaxed)
    }

    /// Counts a new Job.
    pub(crate) fn job_created(&self) {
        if self.leads() {
            self.created.get_or_create(&StatusLabel { status: "created" }).inc();
        }
    }

    /// Counts a Job that the webhook beside this sink refused or queued, or would have.
    pub(crate) fn job_refused(&self, status: &'static str) {
        self.created.get_or_create(&StatusLabel { status }).inc();
    }

    /// Counts a Job that has finished. If it is not harvested, its failure is counted here, as far as the Job alone shows.
    pub(crate) fn job_finished(&self, job: &JobSnapshot, harvested: bool) {
        let Some(finished) = job.finished.as_ref().filter(|_| self.leads()) else { return };
        if let Some(started) = job.started {
            let seconds = finished.at.duration_since(started).as_secs_f64().max(0.0);
            self.durations.get_or_create(&StatusLabel { status: finished.outcome.as_str() }).observe(seconds);
        }
        if !harvested && finished.outcome == Outcome::Failed {
            self.job_failed(Cause::of_condition(&finished.reason));
        }
    }

    /// Counts a failed Job; its pods show the cause.
    pub(crate) fn job_failed(&self, cause: Cause) {
        self.failures.get_or_create(&ReasonLabel { reason: cause.as_str() }).inc();
    }

    /// Counts a result that was stored `lag` seconds after the end of its Job.
    pub(crate) fn harvested(&self, outcome: Outcome, completeness: &Completeness, lag: f64) {
        self.harvested.get_or_create(&StatusLabel { status: outcome.as_str() }).inc();
        self.lag.observe(lag.max(0.0));
        if !completeness.lost.is_empty() {
            self.incomplete.inc();
        }
        if completeness.truncated_count() > 0 {
            self.truncated.inc();
        }
    }

    pub(crate) fn result_withheld(&self) {
        self.withheld.inc();
    }

    pub(crate) fn action_failed(&self, what: &'static str) {
        self.faults.get_or_create(&ActionLabel { what }).inc();
    }

    pub(crate) fn pruned(&self) {
        self.pruned.inc();
    }

    pub(crate) fn result_removed(&self, reason: &'static str) {
        self.removed.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn refusal_dropped(&self, reason: &'static str) {
        self.dropped.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn event_delivered(&self, sink: &str, phase: JobPhase) {
        self.events
            .get_or_create(&ReceiverPhaseLabels { sink: sink.to_owned(), phase: phase.as_str() })
            .inc();
    }

    pub(crate) fn event_failed(&self, sink: &str) {
        self.events_failed.get_or_create(&ReceiverLabel { sink: sink.to_owned() }).inc();
    }

    pub(crate) fn set_events_pending(&self, sink: &str, jobs: usize) {
        let gauge = self.events_pending.get_or_create(&ReceiverLabel { sink: sink.to_owned() });
        gauge.set(i64::try_from(jobs).unwrap_or(i64::MAX));
    }

    pub(crate) fn set_refusals_pending(&self, sink: &str, refusals: usize) {
        let gauge = self.refusals_pending.get_or_create(&ReceiverLabel { sink: sink.to_owned() });
        gauge.set(i64::try_from(refusals).unwrap_or(i64::MAX));
    }

    /// Counts events that the receiver will never get.
    pub(crate) fn events_dropped(&self, sink: &str, reason: &'static str, events: u64) {
        self.events_dropped
            .get_or_create(&ReceiverReasonLabels { sink: sink.to_owned(), reason })
            .inc_by(events);
    }

    /// Only the leader sets it.
    pub(crate) fn set_summary(&self, summary: &ClusterSummary) {
        let to_i64 = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.active.set(to_i64(summary.active));
        self.oldest_active.set(summary.oldest_active);
        self.unharvested.set(to_i64(summary.unharvested));
        self.oldest_unharvested.set(summary.oldest_unharvested);
        self.deadline_used.set(summary.deadline_used);
        self.results_stored.set(i64::from(summary.results.stored));
        self.result_bytes.set(i64::try_from(summary.results.bytes).unwrap_or(i64::MAX));
        self.results_incomplete_now.set(i64::from(summary.results.incomplete));
        self.budget_used.set(summary.budget_used);
    }

    pub(crate) fn set_queue_length(&self, keys: usize) {
        self.queue.set(i64::try_from(keys).unwrap_or(i64::MAX));
    }

    /// Observes the restarts of the most restarted container of a harvested Job.
    pub(crate) fn restarts(&self, most: i32) {
        self.restarts.observe(f64::from(most));
    }

    /// Counts a result that will never be stored, or not until there is room for it.
    pub(crate) fn result_lost(&self, reason: &'static str) {
        self.lost.get_or_create(&ReasonLabel { reason }).inc();
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
