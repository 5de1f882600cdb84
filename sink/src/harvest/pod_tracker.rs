//! The pods of Jobs whose results are requested and not stored yet: their last known states, and the logs that were
//! captured before the pods were deleted. In memory only, with limits ([`crate::harvest::tracker_state`]): after a restart,
//! the sink knows nothing of pods that were deleted before, and the result says so.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    harvest::{
        captured::CapturedPod,
        placeholder, pod_facts,
        tracked_pod::{CapturedPodState, EarlyLog, LogCapture, TrackedPod, TrackedPodView},
        tracker_state::TrackerState,
        tuning::UNKNOWN_JOB,
    },
    model::{job_change::Uid, served_namespaces::NamespaceScope},
};

/// Why a log is missing that was read in an earlier harvest.
const NOT_KEPT: &str = "there was no memory to keep it until the Job's other logs could be read, and the pod was deleted before it was read again";

/// The tracked pods; clones share them.
#[derive(Clone, Debug)]
pub struct PodTracker {
    state: Arc<Mutex<TrackerState>>,
    /// Counts captures that have ended.
    ended_captures: watch::Sender<u64>,
}

impl Default for PodTracker {
    fn default() -> Self {
        Self { state: Arc::default(), ended_captures: watch::Sender::new(0) }
    }
}

impl PodTracker {
    fn lock(&self) -> MutexGuard<'_, TrackerState> {
        self.state.lock()
    }

    /// Adds or updates a pod.
    pub(crate) fn upsert(&self, job: &str, pod: &Pod) {
        let mut state = self.lock();
        let mut facts = pod_facts::of_pod(pod);
        let uid = facts.uid.clone();
        let deleting = pod.metadata.deletion_timestamp.is_some();
        if let Some(known) = state.pods.get_mut(&uid) {
            // A list may be older than the watch.
            if !known.facts.gone {
                placeholder::keep_observed(&mut facts, &known.facts);
                (known.facts, known.deleting) = (facts, deleting);
            }
            return;
        }
        state.jobs.entry(job.to_owned()).or_default().pods.insert(uid.clone());
        let tracked = TrackedPod {
            job: job.to_owned(),
            namespace: pod.namespace().unwrap_or_default(),
            facts,
            created: pod.creation_timestamp().map(|t| t.0),
            deleting,
            since: Instant::now(),
            runs: BTreeMap::new(),
        };
        state.pods.insert(uid, tracked);
    }

    /// Marks a pod as deleted; `last` is its last state, if that is known. Returns whether the pod is tracked.
    pub(crate) fn mark_deleted(&self, uid: &str, last: Option<&Pod>) -> bool {
        let mut state = self.lock();
        let Some(known) = state.pods.get_mut(uid) else { return false };
        if let Some(pod) = last {
            let mut facts = pod_facts::of_pod(pod);
            placeholder::keep_observed(&mut facts, &known.facts);
            known.facts = facts;
        }
        known.facts.gone = true;
        let job = known.job.clone();
        state.drop_surplus(&job);
        true
    }

    /// Marks the pods that a list of this scope did not show as deleted, and returns them.
    pub(crate) fn mark_unseen_deleted(&self, scope: &NamespaceScope, seen: &BTreeSet<Uid>) -> Vec<Uid> {
        let gone: Vec<Uid> = {
            let state = self.lock();
            let there = state.pods.iter().filter(|(_, pod)| !pod.facts.gone && scope.covers(&pod.namespace));
            there.map(|(uid, _)| uid).filter(|uid| !seen.contains(*uid)).cloned().collect()
        };
        gone.iter().for_each(|uid| _ = self.mark_deleted(uid, None));
        gone
    }

    pub(crate) fn view(&self, uid: &str) -> Option<TrackedPodView> {
        let state = self.lock();
        let pod = state.pods.get(uid)?;
        Some(TrackedPodView {
            job: pod.job.clone(),
            namespace: pod.namespace.clone(),
            facts: pod.facts.clone(),
            deleting: pod.deleting,
            runs: pod.runs.keys().cloned().collect(),
        })
    }

    pub(crate) fn pods_of_job(&self, job: &str) -> Vec<Uid> {
        self.lock().jobs.get(job).map(|of| of.pods.iter().cloned().collect()).unwrap_or_default()
    }

    /// The number of a Job's pods that are not known to be deleted.
    pub(crate) fn live_pods(&self, job: &str) -> usize {
        let state = self.lock();
        let pods = state.jobs.get(job).into_iter().flat_map(|of| &of.pods);
        pods.filter_map(|uid| state.pods.get(uid)).filter(|pod| !pod.facts.gone).count()
    }

    /// Drops the pods of Jobs that no longer need them. `needs` returns none for an unknown Job, whose pods are dropped after
    /// [`UNKNOWN_JOB`].
    pub(crate) fn gc(&self, needs: impl Fn(&str) -> Option<bool>) {
        let jobs: Vec<Uid> = self.lock().jobs.keys().cloned().collect();
        for job in jobs {
            let needed = needs(&job);
            let mut state = self.lock();
            let fresh = |pod: &TrackedPod| pod.since.elapsed() < UNKNOWN_JOB;
            let of = state.jobs.get(&job);
            let young = of.is_some_and(|of| of.pods.iter().any(|uid| state.pods.get(uid).is_some_and(fresh)));
            if !needed.unwrap_or(young) {
                state.drop_job(&job);
            }
        }
    }

    /// Drops a Job's pods and cancels their captures.
    pub(crate) fn drop_job(&self, job: &str) {
        self.lock().drop_job(job);
    }

    /// Drops a pod.
    pub(crate) fn drop_pod(&self, uid: &str) {
        self.lock().drop_pod(uid);
    }

    /// Drops everything.
    pub(crate) fn clear(&self) {
        let mut state = self.lock();
        let jobs: Vec<Uid> = state.jobs.keys().cloned().collect();
        jobs.iter().for_each(|job| state.drop_job(job));
    }

    /// Begins the capture of a run; none if there was one before, or the pod is no longer tracked. The caller ends it with
    /// [`Self::end_capture`], at the latest when the token is cancelled.
    pub(crate) fn begin_capture(&self, uid: &str, run: &str) -> Option<CancellationToken> {
        let mut state = self.lock();
        let pod = state.pods.get_mut(uid)?;
        if pod.runs.contains_key(run) {
            return None;
        }
        let token = CancellationToken::new();
        pod.runs.insert(run.to_owned(), LogCapture::Open(token.clone(), 0));
        Some(token)
    }

    /// Reserves more bytes for a run that is being read; its Job may have `per_job` in all. Returns whether there was room.
    pub(crate) fn reserve(&self, uid: &str, run: &str, bytes: usize, per_job: usize) -> bool {
        self.lock().reserve(uid, run, bytes, per_job)
    }

    /// Stores the outcome of a capture.
    pub(crate) fn end_capture(&self, uid: &str, run: &str, outcome: Result<EarlyLog, String>) {
        {
            let mut state = self.lock();
            if let Some(pod) = state.pods.get_mut(uid)
                && let Some(open @ LogCapture::Open(..)) = pod.runs.get_mut(run)
            {
                let LogCapture::Open(_, taken) = open else { return };
                let taken = *taken;
                *open = match outcome {
                    Ok(content) => LogCapture::Done(content),
                    Err(reason) => LogCapture::Dropped(reason),
                };
                let bytes = open.bytes();
                let job = pod.job.clone();
                state.account(&job, bytes.cast_signed() - taken.cast_signed());
            }
        }
        self.ended_captures.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Keeps what was read of a finished Job, some of whose logs cannot be read for now: it outlives its pod, and is not read
    /// again. The Job may have `per_job` bytes in all.
    pub(crate) fn keep_logs(&self, pods: Vec<CapturedPod>, per_job: usize) {
        for CapturedPod { facts, logs, .. } in pods {
            for log in logs.into_iter().filter(|log| log.lost.is_none() || log.excerpt.length > 0) {
                let (uid, run) = (&facts.uid, log.run_id.clone());
                let mut state = self.lock();
                if state.begin_keeping(uid, &run, log.excerpt.length) {
                    let room = state.reserve(uid, &run, log.excerpt.bytes(), per_job);
                    drop(state);
                    let kept = if room { Ok(log.into()) } else { Err(NOT_KEPT.to_owned()) };
                    self.end_capture(uid, &run, kept);
                }
            }
        }
    }

    /// Cancels the captures of a pod; they end with what they have.
    pub(crate) fn cancel_captures(&self, uid: &str) {
        let state = self.lock();
        for run in state.pods.get(uid).into_iter().flat_map(|pod| pod.runs.values()) {
            if let LogCapture::Open(token, _) = run {
                token.cancel();
            }
        }
    }

    /// The number of a Job's logs that are being captured.
    fn open_captures(&self, job: &str) -> usize {
        let state = self.lock();
        let pods = state.jobs.get(job).into_iter().flat_map(|of| &of.pods);
        let runs = pods.filter_map(|uid| state.pods.get(uid)).flat_map(|pod| pod.runs.values());
        runs.filter(|run| matches!(run, LogCapture::Open(..))).count()
    }

    /// Waits for the captures of a finished Job: its containers have ended, so their streams end, too. Cancels the rest if
    /// none of them ends within `patience`.
    pub(crate) async fn wait_for_captures(&self, job: &str, patience: Duration) {
        let mut ended = self.ended_captures.subscribe();
        let mut before = self.open_captures(job);
        let mut until = tokio::time::Instant::now() + patience;
        let mut cancelled = false;
        while before > 0 {
            match tokio::time::timeout_at(until, ended.changed()).await {
                Ok(Ok(())) => {}
                Err(_) if !cancelled => {
                    cancelled = true;
                    until += patience;
                    self.pods_of_job(job).iter().for_each(|uid| self.cancel_captures(uid));
                }
                // The captures do not even react to being cancelled.
                Err(_) | Ok(Err(_)) => return,
            }
            let now = self.open_captures(job);
            if now < before && !cancelled {
                until = tokio::time::Instant::now() + patience;
            }
            before = now;
        }
    }

    /// A Job's pods by uid, and the number of those that were dropped because there were too many. A pod of another namespace
    /// can name the Job's uid, but is not its pod.
    pub(crate) fn captured_pods(
        &self,
        namespace: &str,
        job: &str,
    ) -> (HashMap<Uid, CapturedPodState>, usize) {
        let state = self.lock();
        let Some(of) = state.jobs.get(job) else { return (HashMap::new(), 0) };
        let captured = |pod: &TrackedPod| CapturedPodState {
            facts: pod.facts.clone(),
            created: pod.created,
            logs: pod
                .runs
                .iter()
                .filter_map(|(run, capture)| Some((run.clone(), capture.content()?)))
                .collect(),
        };
        let own = |uid: &Uid| state.pods.get(uid).filter(|pod| pod.namespace == namespace);
        let pods = of.pods.iter().filter_map(|uid| Some((uid.clone(), captured(own(uid)?)))).collect();
        (pods, of.dropped_pods)
    }
}

#[cfg(test)]
mod tests;
