//! Tracks the pods of unfinished Jobs whose results are requested, and captures their logs before the pods are deleted: each
//! log when its container ends, and earlier if its pod is at risk ([`crate::harvest::at_risk`]). Only the leader does this.
//!
//! The watch selects pods by the Job controller's label. Those of a Job with `manualSelector` may lack it: they are listed
//! whenever their Job changes. Nothing is kept of pods of Jobs without a request, and a bounded part
//! of the others. Each resync repairs what a missed event left behind.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use futures::future::join_all;
use job_handler_shared::{
    job::snapshot::{JobSnapshot, MAX_UID},
    kube::{object_stream::objects, watch},
    policy::results::{Logs, LogsMode},
    process::admin::ReadyHandle,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, runtime::watcher::Event};
use tokio::{sync::broadcast::error::RecvError, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    harvest::{
        at_risk::{self, CapturePlan},
        collector::Collector,
        job_pods::{self, CONTROLLER_UID, LogRun},
        pod_tracker::PodTracker,
        tracked_pod::{EarlyLog, TrackedPodView},
        tuning::{DELETED_POD_STREAM, JOB_OF_POD},
    },
    model::{job_change::Uid, served_namespaces::NamespaceScope},
    observe::{context::Context, reflectors},
    runtime::{resync::RESYNC, work_queue::Queue},
};

/// Captures logs of unfinished Jobs.
#[derive(Clone)]
pub(crate) struct Follower {
    /// Client and caches.
    pub(crate) context: Context,
    /// Reads logs.
    pub(crate) collector: Collector,
    /// Stores pods and captured logs.
    pub(crate) pod_tracker: PodTracker,
}

/// A key of the work queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum FollowerKey {
    Pod(Uid),
    /// A Job's pods.
    Job(Uid),
    /// A pod that was deleted a while ago.
    DeletedPod(Uid),
}

impl Follower {
    /// Runs while this sink is the leader.
    pub(crate) async fn run(self, ready: ReadyHandle) -> Infallible {
        let queue = Queue::default();
        // Pods of an earlier leadership are outdated.
        self.pod_tracker.clear();
        let scopes = self.context.store.served.scopes();
        let watches = scopes.iter().map(|scope| self.watch(scope, &queue, &ready));
        tokio::join!(self.watch_jobs(&queue), join_all(watches), self.resync(&queue), self.work(&queue)).0
    }

    async fn watch(
        &self,
        scope: &NamespaceScope,
        queue: &Queue<FollowerKey>,
        ready: &ReadyHandle,
    ) -> Infallible {
        let mut seen: Option<BTreeSet<Uid>> = None;
        let gone = |uid: Uid, last: Option<&Pod>| {
            if self.pod_tracker.mark_deleted(&uid, last) {
                queue.add_after(FollowerKey::DeletedPod(uid), DELETED_POD_STREAM);
            }
        };
        // A watcher's stream does not end; if it did, the watch would begin again.
        loop {
            let config = reflectors::config().labels(CONTROLLER_UID);
            let stream = objects(scope.api::<Pod>(self.context.client.clone()), config);
            watch::run(stream, "pods", ready, |event: Event<Pod>| match event {
                Event::Init => seen = Some(BTreeSet::new()),
                Event::Apply(pod) | Event::InitApply(pod) => {
                    let Some(uid) = pod.uid() else { return };
                    seen.iter_mut().for_each(|seen| _ = seen.insert(uid.clone()));
                    if self.track(&pod) {
                        queue.add(FollowerKey::Pod(uid));
                    }
                }
                Event::Delete(pod) => {
                    // It may not be tracked yet; the event has its last state.
                    if let Some(uid) = pod.uid() {
                        self.track(&pod);
                        gone(uid, Some(&pod));
                    }
                }
                Event::InitDone => {
                    let seen = seen.take().unwrap_or_default();
                    let unseen = self.pod_tracker.mark_unseen_deleted(scope, &seen);
                    unseen.into_iter().for_each(|uid| gone(uid, None));
                }
            })
            .await;
        }
    }

    /// Tracks a pod if the result of its Job is requested, or its Job is unknown; returns whether it does.
    fn track(&self, pod: &Pod) -> bool {
        let namespace = pod.namespace().unwrap_or_default();
        if namespace.is_empty() || self.context.is_excluded(&namespace) {
            return false;
        }
        // The apiserver takes any uid here, of any length.
        let mut owners = pod.owner_references().iter();
        let owner = owners.find(|owner| owner.kind == "Job" && owner.uid.len() <= MAX_UID);
        let Some(job) = owner.map(|owner| owner.uid.clone()) else { return false };
        // Owner references are not checked by anybody: this one may name a Job of another namespace.
        let elsewhere = self.context.store.job(&job).is_some_and(|job| job.namespace != namespace);
        let needed = !elsewhere && self.needs(&job).unwrap_or(true);
        if needed {
            self.pod_tracker.upsert(&job, pod);
        }
        needed
    }

    /// Whether a Job's pods are still needed; none for an unknown Job.
    fn needs(&self, uid: &str) -> Option<bool> {
        let Some(job) = self.context.store.job(uid) else {
            // It was deleted before its result was stored, or it is unknown.
            return self.context.store.deleted_job(uid).map(|_| true);
        };
        Some(self.logs(&job).is_some() && self.context.store.results_of(&job).is_empty())
    }

    /// What the policies request of a Job's logs.
    fn logs(&self, job: &JobSnapshot) -> Option<Logs> {
        self.context.store.effective(job)?.results.map(|results| results.logs)
    }

    /// Queues Jobs that have changed.
    async fn watch_jobs(&self, queue: &Queue<FollowerKey>) -> Infallible {
        let mut news = self.context.store.job_changes();
        loop {
            match news.recv().await {
                Ok(uid) => {
                    if self.concerns(&uid) {
                        queue.add(FollowerKey::Job(uid));
                    }
                }
                Err(RecvError::Lagged(_)) => self.all_jobs(queue),
                // The store lives as long as the process.
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    }

    fn concerns(&self, uid: &str) -> bool {
        self.context.store.job(uid).is_some_and(|job| job.finished.is_none() && job.started.is_some())
    }

    fn all_jobs(&self, queue: &Queue<FollowerKey>) {
        for job in self.context.store.unfinished() {
            if job.active_pods + job.terminating_pods > 0 {
                queue.add(FollowerKey::Job(job.uid.clone()));
            }
        }
    }

    async fn resync(&self, queue: &Queue<FollowerKey>) -> Infallible {
        loop {
            self.pod_tracker.gc(|job| self.needs(job));
            self.all_jobs(queue);
            tokio::time::sleep(RESYNC).await;
        }
    }

    async fn work(&self, queue: &Queue<FollowerKey>) -> Infallible {
        let mut captures = JoinSet::new();
        loop {
            tokio::select! {
                Some(ended) = captures.join_next(), if !captures.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!("a capture panicked: {error}");
                    }
                }
                key = queue.next() => {
                    let well = self.process(&key, queue, &mut captures).await;
                    queue.done(key, well);
                }
            }
        }
    }

    async fn process(
        &self,
        key: &FollowerKey,
        queue: &Queue<FollowerKey>,
        captures: &mut JoinSet<()>,
    ) -> bool {
        match key {
            FollowerKey::DeletedPod(uid) => self.pod_tracker.cancel_captures(uid),
            FollowerKey::Pod(uid) => {
                let Some(view) = self.pod_tracker.view(uid) else { return true };
                let Some(job) = self.context.store.job(&view.job) else {
                    // The watch of Jobs may be late.
                    if self.context.store.deleted_job(&view.job).is_none() {
                        queue.add_after(key.clone(), JOB_OF_POD);
                    }
                    return true;
                };
                // It came before the Job was known.
                if view.namespace != job.namespace {
                    self.pod_tracker.drop_pod(uid);
                    return true;
                }
                self.begin(&job, view, captures);
            }
            FollowerKey::Job(uid) => {
                let Some(job) = self.context.store.job(uid).filter(|job| job.finished.is_none()) else {
                    return true;
                };
                if self.needs(uid) != Some(true) {
                    self.pod_tracker.drop_job(uid);
                    return true;
                }
                let expected = usize::try_from(job.active_pods).unwrap_or_default();
                // Pods that were created before the result was requested, or whose event was missed; or that the watch does
                // not show, since they lack the label.
                if job.pod_selector.is_some() || self.pod_tracker.live_pods(uid) < expected {
                    let track = |pod: &Pod| self.pod_tracker.upsert(uid, pod);
                    if let Err(error) = job_pods::list(&self.context.client, &job, track).await {
                        tracing::warn!(job = job.key(), "cannot list pods to follow: {error}; retrying");
                        return false;
                    }
                }
                let now = jiff::Timestamp::now();
                if let Some(from) = at_risk::at_risk_from(&job).filter(|from| *from > now) {
                    let pause = Duration::try_from(from.duration_since(now)).unwrap_or_default();
                    // A later time is checked again by the resync.
                    if pause <= RESYNC {
                        queue.add_after(key.clone(), pause);
                    }
                }
                let views = self.pod_tracker.pods_of_job(uid).into_iter();
                let views = views.filter_map(|pod| self.pod_tracker.view(&pod));
                views
                    .filter(|view| view.namespace == job.namespace)
                    .for_each(|view| self.begin(&job, view, captures));
            }
        }
        true
    }

    /// Begins the captures that a pod needs now.
    fn begin(&self, job: &Arc<JobSnapshot>, view: TrackedPodView, captures: &mut JoinSet<()>) {
        // From then on, the collector reads the logs.
        if job.finished.is_some() || view.facts.gone {
            return;
        }
        let Some(logs) = self.logs(job).filter(|logs| logs.mode == LogsMode::HeadAndTail) else { return };
        let at_risk = at_risk::is_at_risk(job, jiff::Timestamp::now());
        let (uid, view) = (view.facts.uid.clone(), Arc::new(view));
        for plan in at_risk::capture_plans(&view.facts, view.deleting, at_risk) {
            if view.runs.contains(&plan.id) {
                continue;
            }
            let Some(stop) = self.pod_tracker.begin_capture(&uid, &plan.id) else { continue };
            tracing::debug!(pod = view.facts.name, container = plan.container, mode = ?plan.mode, "capturing a log");
            captures.spawn(self.clone().capture(view.clone(), plan, logs.clone(), stop));
        }
    }

    async fn capture(
        self,
        view: Arc<TrackedPodView>,
        plan: CapturePlan,
        logs: Logs,
        stop: CancellationToken,
    ) {
        let pod = &view.facts;
        let run = LogRun {
            namespace: &view.namespace,
            pod: &pod.name,
            container: &plan.container,
            previous: plan.previous,
            id: &plan.id,
        };
        let mut truncated = false;
        let room = |bytes| {
            let room = self.pod_tracker.reserve(&pod.uid, &plan.id, bytes, logs.per_job());
            truncated |= !room;
            room
        };
        let node = pod.node.clone().unwrap_or_default();
        let reader = self.collector.reader();
        let read = reader.read_early(run, &node, plan.mode, logs.per_container(), room, stop).await;
        self.pod_tracker.end_capture(&pod.uid, &plan.id, read.map(|log| EarlyLog { truncated, ..log }));
    }
}

#[cfg(test)]
mod tests;
