//! Collects the pods of a finished Job: their states, and their logs within the Job's budget. Logs that the follower
//! ([`crate::harvest::follower`]) captured before their pods were deleted are used as they are.

use std::collections::{HashMap, HashSet};

use futures::StreamExt;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    kube::error::ApiError,
    policy::results::{Logs, LogsMode},
};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use tokio::time::Instant;

use crate::{
    harvest::{
        captured::{CapturedLog, CapturedPod, CapturedPods, LogLoss, bytes_of},
        full_logs,
        job_pods::{self, JobPod, LogRun, runs},
        log_budget::LogBudget,
        log_reader::LogReader,
        node_limits::MemoryPermit,
        placeholder, pod_status,
        pod_tracker::PodTracker,
        tracked_pod::{CapturedPodState, EarlyLog},
        tuning::{CAPTURES_END, JOB_TIMEOUT, PODS_AT_A_TIME},
    },
    model::job_change::Uid,
    object_store::{FullLog, FullLogStore},
    runtime::lanes::Pace,
};

/// Collects pods and logs; clones share its limits.
#[derive(Clone)]
pub struct Collector {
    pub(super) reader: LogReader,
}

/// What reading the logs of one Job needs.
struct JobLogs<'a> {
    namespace: &'a str,
    limits: &'a Logs,
    budget: &'a LogBudget,
    pace: Pace,
    deadline: Instant,
}

impl Collector {
    /// One per process: all collections share its limits.
    pub fn new(client: Client) -> Self {
        Self { reader: LogReader::new(client) }
    }

    /// Stores logs over their budget in full, if there is an object store.
    #[must_use]
    pub fn with_objects(self, store: Option<FullLogStore>) -> Self {
        Self { reader: self.reader.with_store(store) }
    }

    pub(crate) fn reader(&self) -> &LogReader {
        &self.reader
    }

    /// Collects all pods of a finished Job, existing and deleted ones. The most relevant pods use the budget first. The
    /// returned memory permit must live as long as the logs. Full logs stay in the spool until
    /// [`Self::upload_full_logs`]: the node is free for other Jobs by then, however slow the object store is.
    pub(crate) async fn collect(
        &self,
        job: &JobSnapshot,
        limits: &Logs,
        tracker: &PodTracker,
    ) -> Result<(CapturedPods, MemoryPermit), ApiError> {
        let (namespace, job_uid) = (job.namespace.as_str(), job.uid.as_str());
        tracker.wait_for_captures(job_uid, CAPTURES_END).await;
        let mut existing = Vec::new();
        let keep = |pod: &Pod| existing.push(CapturedPodState::from(pod));
        job_pods::list(self.reader.client(), job, keep).await?;
        let (tracked, dropped_pods) = tracker.captured_pods(namespace, job_uid);
        let pods = merge(existing, &tracked);
        let logs = match limits.mode {
            LogsMode::HeadAndTail => pods.iter().map(JobPod::log_count).sum(),
            LogsMode::None => 0,
        };
        // Most Jobs have one pod. If there are more, the first one's node stands for all; reads have limits per node anyway.
        let node = pods.iter().find_map(JobPod::node).map(str::to_owned);
        let max = limits.per_job().min(limits.per_container().saturating_mul(logs));
        let permit = self.reader.nodes().acquire(namespace, node.as_deref().filter(|_| logs > 0), max).await;
        let budget = LogBudget::new(max);
        let deadline = Instant::now() + JOB_TIMEOUT;
        let with = JobLogs { namespace, limits, budget: &budget, pace: Pace::Regular, deadline };
        let collected = pods.into_iter().map(|pod| self.pod(pod, &tracked, &with));
        let mut pods: Vec<_> = futures::stream::iter(collected).buffered(PODS_AT_A_TIME).collect().await;
        let mut memory = permit.release_node(bytes_of(&pods));
        let deferred = pods.iter().flat_map(|pod| &pod.logs).filter(|log| log.deferred).count();
        if deferred > 0 {
            let max = budget.left().min(limits.per_container().saturating_mul(deferred));
            let before = bytes_of(&pods);
            let (permit, max) =
                self.reader.nodes().acquire_slow(node.as_deref().unwrap_or_default(), max).await;
            let budget = LogBudget::new(max);
            let deadline = Instant::now() + JOB_TIMEOUT;
            let with = JobLogs { namespace, limits, budget: &budget, pace: Pace::Slow, deadline };
            let again = pods.into_iter().map(|pod| self.deferred_logs(pod, &tracked, &with));
            pods = futures::stream::iter(again).buffered(PODS_AT_A_TIME).collect().await;
            memory = memory.and(permit.release_node(bytes_of(&pods).saturating_sub(before)));
        }
        tracing::debug!(pods = pods.len(), deferred, "collected the pods");
        Ok((CapturedPods { pods, dropped_pods, objects: None }, memory))
    }

    async fn pod(
        &self,
        pod: JobPod,
        tracked: &HashMap<Uid, CapturedPodState>,
        with: &JobLogs<'_>,
    ) -> CapturedPod {
        match pod {
            JobPod::Existing(pod) => self.existing_pod(*pod, tracked, with).await,
            JobPod::Deleted(pod) => self.deleted_pod(*pod, with).await,
        }
    }

    async fn existing_pod(
        &self,
        pod: CapturedPodState,
        tracked: &HashMap<Uid, CapturedPodState>,
        with: &JobLogs<'_>,
    ) -> CapturedPod {
        let CapturedPodState { mut facts, created, .. } = pod;
        let tracked = tracked.get(&facts.uid);
        let mut logs = Vec::new();
        if with.limits.mode == LogsMode::HeadAndTail {
            let node = facts.node.clone().unwrap_or_default();
            for container in &mut facts.containers {
                for (previous, id) in runs(container) {
                    let run = LogRun {
                        namespace: with.namespace,
                        pod: &facts.name,
                        container: &container.name,
                        previous,
                        id: &id,
                    };
                    let log = self.log(run, &node, tracked, with).await;
                    container.logs.push(log.facts());
                    logs.push(log);
                }
            }
        }
        CapturedPod { facts, created, logs }
    }

    /// Reads the deferred logs of a pod.
    async fn deferred_logs(
        &self,
        mut pod: CapturedPod,
        tracked: &HashMap<Uid, CapturedPodState>,
        with: &JobLogs<'_>,
    ) -> CapturedPod {
        if pod.logs.iter().all(|log| !log.deferred) {
            return pod;
        }
        let tracked = tracked.get(&pod.facts.uid);
        let node = pod.facts.node.clone().unwrap_or_default();
        let mut logs = pod.logs.iter_mut();
        for container in &mut pod.facts.containers {
            for (at, (previous, id)) in runs(container).into_iter().enumerate() {
                let Some(log) = logs.next().filter(|log| log.deferred) else { continue };
                let run = LogRun {
                    namespace: with.namespace,
                    pod: &pod.facts.name,
                    container: &container.name,
                    previous,
                    id: &id,
                };
                *log = self.log(run, &node, tracked, with).await;
                if let Some(facts) = container.logs.get_mut(at) {
                    *facts = log.facts();
                }
            }
        }
        pod
    }

    /// Reads one run's log within the Job's budget.
    async fn log(
        &self,
        run: LogRun<'_>,
        node: &str,
        tracked: Option<&CapturedPodState>,
        with: &JobLogs<'_>,
    ) -> CapturedLog {
        let granted = with.budget.reserve(with.limits.per_container());
        let early = tracked.and_then(|tracked| tracked.logs.get(run.id));
        let log = self.read_or_reuse(run, node, granted, early, with).await;
        with.budget.release(granted.saturating_sub(log.excerpt.bytes()));
        log
    }

    /// Reads a log, unless it was captured before.
    async fn read_or_reuse(
        &self,
        run: LogRun<'_>,
        node: &str,
        max: usize,
        early: Option<&EarlyLog>,
        with: &JobLogs<'_>,
    ) -> CapturedLog {
        let wanted = max > 0 || self.reader.store().is_some();
        if let Some(early) = early.filter(|early| early.is_complete() && wanted) {
            return self.reuse(run, early, max).await;
        }
        let read = self.reader.read(run, node, max, with.pace, with.deadline).await;
        match (early, &read.lost) {
            // A part is better than nothing, and the earlier reason explains more.
            (Some(part), Some(lost))
                if wanted && !read.deferred && read.excerpt.length < part.excerpt.length =>
            {
                let mut log = self.reuse(run, part, max).await;
                let reason = part.lost.clone().unwrap_or_else(|| lost.to_string());
                log.lost = match lost {
                    LogLoss::Passing(_) => Some(LogLoss::Passing(reason)),
                    LogLoss::Unconfirmed(_) => Some(LogLoss::Unconfirmed(reason)),
                    LogLoss::Final(_) | LogLoss::OverBudget => log.lost,
                };
                log
            }
            _ => read,
        }
    }

    /// An early log as it is; what it misses is final unless the pod can still be asked.
    async fn reuse(&self, run: LogRun<'_>, early: &EarlyLog, max: usize) -> CapturedLog {
        let mut excerpt = early.excerpt.clone();
        full_logs::shorten(&mut excerpt, max, self.reader.store()).await;
        let lost = early.lost.clone().map(LogLoss::Final);
        CapturedLog { excerpt, lost, ..CapturedLog::new(run) }
    }

    async fn deleted_pod(&self, pod: CapturedPodState, with: &JobLogs<'_>) -> CapturedPod {
        let CapturedPodState { mut facts, created, logs: early_logs } = pod;
        // The watch may not have shown its deletion yet.
        facts.gone = true;
        let mut logs = Vec::new();
        if with.limits.mode == LogsMode::HeadAndTail {
            for container in &mut facts.containers {
                for (previous, id) in runs(container) {
                    let run =
                        LogRun { namespace: "", pod: "", container: &container.name, previous, id: &id };
                    let never_read = || EarlyLog {
                        lost: Some("the pod was deleted before its log was read".to_owned()),
                        ..EarlyLog::default()
                    };
                    let granted = with.budget.reserve(with.limits.per_container());
                    let early = early_logs.get(&id).cloned().unwrap_or_else(never_read);
                    let mut log = self.reuse(run, &early, granted).await;
                    if granted == 0 && early.excerpt.length > 0 && log.excerpt.full == FullLog::Absent {
                        log.lost = Some(LogLoss::OverBudget);
                    }
                    with.budget.release(granted.saturating_sub(log.excerpt.bytes()));
                    container.logs.push(log.facts());
                    logs.push(log);
                }
            }
        }
        CapturedPod { facts, created, logs }
    }
}

/// Existing and deleted pods, the most relevant ones first.
fn merge(existing: Vec<CapturedPodState>, tracked: &HashMap<Uid, CapturedPodState>) -> Vec<JobPod> {
    let observed = |mut pod: CapturedPodState| {
        if let Some(before) = tracked.get(&pod.facts.uid) {
            placeholder::keep_observed(&mut pod.facts, &before.facts);
        }
        JobPod::Existing(Box::new(pod))
    };
    let mut pods: Vec<JobPod> = existing.into_iter().map(observed).collect();
    let listed: HashSet<Uid> = pods.iter().map(|pod| pod.uid().to_owned()).collect();
    let deleted = tracked.iter().filter(|(uid, _)| !listed.contains(*uid));
    pods.extend(deleted.map(|(_, pod)| JobPod::Deleted(Box::new(pod.clone()))));
    pods.sort_by(|a, b| pod_status::by_relevance(&a.relevance(), &b.relevance()));
    pods
}

#[cfg(test)]
mod tests;
