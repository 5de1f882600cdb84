//! What the sink counts. Labels are bounded: never a Job's name.

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
    result::{failure::Cause, pending_events::JobPhase},
};
use parking_lot::Mutex;
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

use crate::model::summary::ClusterSummary;

/// One label `status`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Status {
    status: &'static str,
}

/// One label `reason`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// One label `what`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct What {
    what: &'static str,
}

/// A receiver of CloudEvents; their names are the operator's, so few.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sink {
    sink: String,
}

/// The same, and what it was told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkPhase {
    sink: String,
    phase: &'static str,
}

/// The same, and why it was not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkReason {
    sink: String,
    reason: &'static str,
}

/// A limit of a policy, as the webhook names them too.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    policy: String,
    limit: String,
}

/// The sink's metrics; clones are the same ones. Jobs are counted by the leader alone, so that sums over replicas hold.
#[derive(Clone, Debug)]
pub struct SinkMetrics {
    leading: Arc<AtomicBool>,
    leader: Gauge<i64, AtomicI64>,
    created: Family<Status, Counter>,
    durations: Family<Status, Histogram, fn() -> Histogram>,
    failures: Family<Reason, Counter>,
    active: Gauge<i64, AtomicI64>,
    lag: Histogram,
    harvested: Family<Status, Counter>,
    incomplete: Counter,
    withheld: Counter,
    faults: Family<What, Counter>,
    pruned: Counter,
    removed: Family<Reason, Counter>,
    dropped: Family<Reason, Counter>,
    queue: Gauge<i64, AtomicI64>,
    limit_queued: Family<LimitLabels, Gauge<i64, AtomicI64>>,
    /// Limits of which was told last.
    limits: Arc<Mutex<HashMap<(String, String), usize>>>,
    restarts: Histogram,
    lost: Family<Reason, Counter>,
    oldest_active: Gauge<f64, AtomicU64>,
    unharvested: Gauge<i64, AtomicI64>,
    oldest_unharvested: Gauge<f64, AtomicU64>,
    deadline_used: Gauge<f64, AtomicU64>,
    results_stored: Gauge<i64, AtomicI64>,
    result_bytes: Gauge<i64, AtomicI64>,
    results_incomplete_now: Gauge<i64, AtomicI64>,
    budget_used: Gauge<f64, AtomicU64>,
    events: Family<SinkPhase, Counter>,
    events_failed: Family<Sink, Counter>,
    events_pending: Family<Sink, Gauge<i64, AtomicI64>>,
    refusals_pending: Family<Sink, Gauge<i64, AtomicI64>>,
    events_dropped: Family<SinkReason, Counter>,
}

fn durations() -> Histogram {
    // 1 s to about 4.5 h.
    Histogram::new(exponential_buckets(1.0, 2.0, 15))
}

impl SinkMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        let own = Self {
            leading: Arc::default(),
            leader: Gauge::default(),
            created: Family::default(),
            durations: Family::new_with_constructor(durations),
            failures: Family::default(),
            active: Gauge::default(),
            // 10 ms to about 5 min, and beyond.
            lag: Histogram::new(exponential_buckets(0.01, 2.0, 16)),
            harvested: Family::default(),
            incomplete: Counter::default(),
            withheld: Counter::default(),
            faults: Family::default(),
            pruned: Counter::default(),
            removed: Family::default(),
            dropped: Family::default(),
            queue: Gauge::default(),
            limit_queued: Family::default(),
            limits: Arc::default(),
            restarts: Histogram::new([0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]),
            lost: Family::default(),
            oldest_active: Gauge::default(),
            unharvested: Gauge::default(),
            oldest_unharvested: Gauge::default(),
            deadline_used: Gauge::default(),
            results_stored: Gauge::default(),
            result_bytes: Gauge::default(),
            results_incomplete_now: Gauge::default(),
            budget_used: Gauge::default(),
            events: Family::default(),
            events_failed: Family::default(),
            events_pending: Family::default(),
            refusals_pending: Family::default(),
            events_dropped: Family::default(),
        };
        metrics.register(|registry| {
            registry.register("k8s_job_creation", "Jobs created, by what came of it", own.created.clone());
            registry.register("k8s_job_duration_seconds", "From start to end", own.durations.clone());
            registry.register("k8s_job_failures", "Failed Jobs by what it was", own.failures.clone());
            registry.register("k8s_active_jobs", "Jobs that take a slot", own.active.clone());
            let build = Info::new([("version", crate::VERSION)]);
            let ours = registry.sub_registry_with_prefix("job_handler");
            ours.register("sink_build", "The sink's version", build);
            ours.register("leader", "1 where this sink leads", own.leader.clone());
            ours.register("harvest_lag_seconds", "From a Job's end to its stored result", own.lag.clone());
            ours.register("results", "Results stored", own.harvested.clone());
            ours.register("results_incomplete", "Results that miss something", own.incomplete.clone());
            let withheld = "Results without logs and messages, for want of the rights on Secrets";
            ours.register("results_withheld", withheld, own.withheld.clone());
            ours.register("faults", "Actions that failed and are tried again", own.faults.clone());
            ours.register("pruned_jobs", "Jobs deleted as older runs of their group", own.pruned.clone());
            ours.register("results_removed", "Results removed by retention, by why", own.removed.clone());
            ours.register("refusals_dropped", "Refusals that were not told", own.dropped.clone());
            ours.register("queue_length", "Jobs and groups to be looked at", own.queue.clone());
            let queued = "Jobs that wait for a slot of a limit, in all of its scopes";
            ours.register("limit_queued", queued, own.limit_queued.clone());
            let most = "Restarts of the container that was restarted most, per harvested Job";
            ours.register("job_restarts", most, own.restarts.clone());
            ours.register("results_lost", "Results that could not be stored", own.lost.clone());
            let oldest = "Since when the longest active Job is";
            ours.register("oldest_active_job_seconds", oldest, own.oldest_active.clone());
            ours.register("unharvested_jobs", "Finished Jobs without their result", own.unharvested.clone());
            let oldest = "Since the first of them finished";
            ours.register("oldest_unharvested_job_seconds", oldest, own.oldest_unharvested.clone());
            let used = "Part of the harvest deadline that has passed for the Job nearest to it";
            ours.register("harvest_deadline_used_ratio", used, own.deadline_used.clone());
            ours.register("stored_results", "Results that are stored", own.results_stored.clone());
            ours.register("stored_result_bytes", "Their bytes", own.result_bytes.clone());
            let missing = "Stored results that miss something";
            ours.register("stored_results_incomplete", missing, own.results_incomplete_now.clone());
            let used = "Part of maxBytesPerNamespace that the fullest namespace has used";
            ours.register("result_budget_used_ratio", used, own.budget_used.clone());
            ours.register("cloudevents", "CloudEvents that were taken", own.events.clone());
            ours.register("cloudevents_failed", "Tries that failed", own.events_failed.clone());
            let waits = "Jobs of which something is to be told by CloudEvents";
            ours.register("cloudevents_pending", waits, own.events_pending.clone());
            let waits = "Refusals that are to be told by CloudEvents";
            ours.register("cloudevents_refusals_pending", waits, own.refusals_pending.clone());
            let never = "CloudEvents that will never be told";
            ours.register("cloudevents_dropped", never, own.events_dropped.clone());
        });
        own
    }

    /// Whether this sink leads from now on.
    pub fn set_leading(&self, leads: bool) {
        self.leading.store(leads, Ordering::Relaxed);
        self.leader.set(i64::from(leads));
        if !leads {
            self.set_limits_queued(HashMap::new());
        }
    }

    /// How many Jobs wait at each limit (policy, limit); of any other nothing is told any more.
    pub fn set_limits_queued(&self, queued: HashMap<(String, String), usize>) {
        let labels =
            |(policy, limit): &(String, String)| LimitLabels { policy: policy.clone(), limit: limit.clone() };
        let mut limits = self.limits.lock();
        for gone in limits.keys().filter(|known| !queued.contains_key(*known)) {
            self.limit_queued.remove(&labels(gone));
        }
        for (limit, jobs) in &queued {
            self.limit_queued.get_or_create(&labels(limit)).set(i64::try_from(*jobs).unwrap_or(i64::MAX));
        }
        *limits = queued;
    }

    fn leads(&self) -> bool {
        self.leading.load(Ordering::Relaxed)
    }

    /// A Job was seen that was not there before.
    pub fn job_created(&self) {
        if self.leads() {
            self.created.get_or_create(&Status { status: "created" }).inc();
        }
    }

    /// A Job was refused, queued, or would have been; told by the webhook beside this sink.
    pub fn job_refused(&self, status: &'static str) {
        self.created.get_or_create(&Status { status }).inc();
    }

    /// A Job was seen to finish. What a failure was is counted here where nobody will look at its pods.
    pub fn job_finished(&self, job: &JobSnapshot, harvested: bool) {
        let Some(finished) = job.finished.as_ref().filter(|_| self.leads()) else { return };
        if let Some(started) = job.started {
            let seconds = finished.at.duration_since(started).as_secs_f64().max(0.0);
            self.durations.get_or_create(&Status { status: finished.outcome.as_str() }).observe(seconds);
        }
        if !harvested && finished.outcome == Outcome::Failed {
            self.job_failed(Cause::of_condition(&finished.reason));
        }
    }

    /// A Job failed; counted when its pods were looked at, which tell what it was.
    pub fn job_failed(&self, cause: Cause) {
        self.failures.get_or_create(&Reason { reason: cause.as_str() }).inc();
    }

    /// A result was stored, `lag` seconds after the Job's end.
    pub fn harvested(&self, outcome: Outcome, complete: bool, lag: f64) {
        self.harvested.get_or_create(&Status { status: outcome.as_str() }).inc();
        self.lag.observe(lag.max(0.0));
        if !complete {
            self.incomplete.inc();
        }
    }

    /// A result was stored without logs and messages: it was to be in a Secret.
    pub fn result_withheld(&self) {
        self.withheld.inc();
    }

    /// An action failed and will be tried again.
    pub fn fault(&self, what: &'static str) {
        self.faults.get_or_create(&What { what }).inc();
    }

    /// An older run was deleted.
    pub fn pruned(&self) {
        self.pruned.inc();
    }

    /// A stored result was removed.
    pub fn result_removed(&self, reason: &'static str) {
        self.removed.get_or_create(&Reason { reason }).inc();
    }

    /// A refusal was not told.
    pub fn refusal_dropped(&self, reason: &'static str) {
        self.dropped.get_or_create(&Reason { reason }).inc();
    }

    /// A receiver took an event.
    pub fn event_told(&self, sink: &str, phase: JobPhase) {
        self.events.get_or_create(&SinkPhase { sink: sink.to_owned(), phase: phase.as_str() }).inc();
    }

    /// A receiver did not take an event.
    pub fn event_failed(&self, sink: &str) {
        self.events_failed.get_or_create(&Sink { sink: sink.to_owned() }).inc();
    }

    /// Jobs of which a receiver is to be told.
    pub fn set_events_pending(&self, sink: &str, jobs: usize) {
        let gauge = self.events_pending.get_or_create(&Sink { sink: sink.to_owned() });
        gauge.set(i64::try_from(jobs).unwrap_or(i64::MAX));
    }

    /// Refusals of which a receiver is to be told.
    pub fn set_refusals_pending(&self, sink: &str, refusals: usize) {
        let gauge = self.refusals_pending.get_or_create(&Sink { sink: sink.to_owned() });
        gauge.set(i64::try_from(refusals).unwrap_or(i64::MAX));
    }

    /// A receiver will never be told of so many.
    pub fn event_dropped(&self, sink: &str, reason: &'static str, events: u64) {
        self.events_dropped.get_or_create(&SinkReason { sink: sink.to_owned(), reason }).inc_by(events);
    }

    /// How things stand over all; told by the leader alone.
    pub fn set_summary(&self, summary: &ClusterSummary) {
        let whole = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.active.set(whole(summary.active));
        self.oldest_active.set(summary.oldest_active);
        self.unharvested.set(whole(summary.unharvested));
        self.oldest_unharvested.set(summary.oldest_unharvested);
        self.deadline_used.set(summary.deadline_used);
        self.results_stored.set(i64::from(summary.results.stored));
        self.result_bytes.set(i64::try_from(summary.results.bytes).unwrap_or(i64::MAX));
        self.results_incomplete_now.set(i64::from(summary.results.incomplete));
        self.budget_used.set(summary.budget_used);
    }

    /// Keys that wait.
    pub fn set_queue(&self, keys: usize) {
        self.queue.set(i64::try_from(keys).unwrap_or(i64::MAX));
    }

    /// The most that a container of a harvested Job was restarted.
    pub fn restarts(&self, most: i32) {
        self.restarts.observe(f64::from(most));
    }

    /// A result will never be stored, or not before somebody makes room for it.
    pub fn result_lost(&self, reason: &'static str) {
        self.lost.get_or_create(&Reason { reason }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_those_of_the_dashboards() {
        let metrics = Metrics::default();
        let own = SinkMetrics::new(&metrics);
        own.set_leading(true);
        own.job_created();
        own.job_failed(Cause::Oom);
        let job = JobSnapshot {
            started: Some(jiff::Timestamp::UNIX_EPOCH),
            finished: Some(job_handler_shared::job::snapshot::Finished {
                outcome: Outcome::Failed,
                reason: String::new(),
                message: String::new(),
                at: jiff::Timestamp::from_second(3).unwrap(),
            }),
            ..JobSnapshot::default()
        };
        own.job_finished(&job, false);
        let limit = |name: &str| ("JobPolicy ci/builds".to_owned(), name.to_owned());
        own.set_limits_queued([(limit("few"), 3), (limit("gone"), 1)].into());
        own.set_limits_queued([(limit("few"), 2)].into());
        let text = metrics.encode().unwrap();
        for line in [
            "k8s_job_creation_total{status=\"created\"} 1",
            "k8s_job_failures_total{reason=\"oom\"} 1",
            "k8s_job_failures_total{reason=\"error\"} 1",
            "k8s_job_duration_seconds_count{status=\"failed\"} 1",
            "k8s_active_jobs 0",
            "job_handler_limit_queued{policy=\"JobPolicy ci/builds\",limit=\"few\"} 2",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("gone"), "{text}");
        own.set_leading(false);
        assert!(!metrics.encode().unwrap().contains("limit_queued{"), "only the leader knows");
    }
}
