//! What the sink counts. Labels are bounded: never a Job's name.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering},
};

use job_handler_shared::{
    job::{JobSnapshot, Outcome},
    telemetry::Metrics,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
};

use crate::{classify, manifest::Cause};

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
    faults: Family<What, Counter>,
    pruned: Counter,
    removed: Family<Reason, Counter>,
    dropped: Family<Reason, Counter>,
    queue: Gauge<i64, AtomicI64>,
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
            faults: Family::default(),
            pruned: Counter::default(),
            removed: Family::default(),
            dropped: Family::default(),
            queue: Gauge::default(),
        };
        metrics.register(|registry| {
            registry.register("k8s_job_creation", "Jobs created, by what came of it", own.created.clone());
            registry.register("k8s_job_duration_seconds", "From start to end", own.durations.clone());
            registry.register("k8s_job_failures", "Failed Jobs by what it was", own.failures.clone());
            registry.register("k8s_active_jobs", "Jobs that take a slot", own.active.clone());
            let ours = registry.sub_registry_with_prefix("job_handler");
            ours.register("leader", "1 where this sink leads", own.leader.clone());
            ours.register("harvest_lag_seconds", "From a Job's end to its stored result", own.lag.clone());
            ours.register("results", "Results stored", own.harvested.clone());
            ours.register("results_incomplete", "Results that miss something", own.incomplete.clone());
            ours.register("faults", "Actions that failed and are tried again", own.faults.clone());
            ours.register("pruned_jobs", "Jobs deleted as older runs of their group", own.pruned.clone());
            ours.register("results_removed", "Results removed by retention, by why", own.removed.clone());
            ours.register("refusals_dropped", "Refusals that were not told", own.dropped.clone());
            ours.register("queue_length", "Jobs and groups to be looked at", own.queue.clone());
        });
        own
    }

    /// Whether this sink leads from now on.
    pub fn set_leading(&self, leads: bool) {
        self.leading.store(leads, Ordering::Relaxed);
        self.leader.set(i64::from(leads));
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
        if let Some(cause) = classify::cause(job, &[]).filter(|_| !harvested) {
            self.job_failed(cause);
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

    /// Jobs that take a slot, and keys that wait.
    pub fn set_sizes(&self, active: usize, queue: usize) {
        self.active.set(i64::try_from(active).unwrap_or(i64::MAX));
        self.queue.set(i64::try_from(queue).unwrap_or(i64::MAX));
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
            finished: Some(job_handler_shared::job::Finished {
                outcome: Outcome::Failed,
                reason: String::new(),
                message: String::new(),
                at: jiff::Timestamp::from_second(3).unwrap(),
            }),
            ..JobSnapshot::default()
        };
        own.job_finished(&job, false);
        let text = metrics.encode().unwrap();
        for line in [
            "k8s_job_creation_total{status=\"created\"} 1",
            "k8s_job_failures_total{reason=\"oom\"} 1",
            "k8s_job_failures_total{reason=\"error\"} 1",
            "k8s_job_duration_seconds_count{status=\"failed\"} 1",
            "k8s_active_jobs 0",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
