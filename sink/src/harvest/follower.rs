//! Follows the pods of unfinished Jobs whose results are asked for, and captures their logs before they are gone: each as
//! its container ends, and from before that where its pod is at risk ([`crate::harvest::at_risk`]). Only the leader does.
//!
//! The watch takes pods with the Job controller's label, cut down to their states at once; of Jobs that nobody asks about
//! nothing is kept. Whatever an event missed is caught up with each resync.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    kube::watch,
    policy::results::{Logs, LogsMode},
    process::admin::ReadyHandle,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    runtime::watcher::{Event, watcher},
};
use tokio::{sync::broadcast::error::RecvError, task::JoinSet};

use crate::{
    harvest::{
        at_risk::{self, Wish},
        collector::{CONTROLLER_UID, Capturer, Run, trim},
        pod_tracker::{Content, Followed, View},
    },
    model::job_change::Uid,
    observe::{context::Context, reflectors},
    runtime::{resync::RESYNC, work_queue::Queue},
};

/// A stream of a pod that is gone ends by itself, but not where its node is gone, too: so long it may take.
const AFTERLIFE: Duration = Duration::from_secs(15);

/// What the follower needs.
#[derive(Clone)]
pub struct Follower {
    /// The cluster, and what is known of Jobs and policies.
    pub context: Context,
    /// Reads logs.
    pub capturer: Capturer,
    /// Takes in what is seen and had.
    pub followed: Followed,
}

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Look {
    Pod(Uid),
    /// A Job's pods.
    Job(Uid),
    /// A pod that was gone a while ago.
    Grave(Uid),
}

impl Follower {
    /// Follows for ever; dropped with all it has begun where this sink stops leading.
    pub async fn keep(self, ready: ReadyHandle) {
        let queue = Queue::default();
        // Whoever led before knew of other pods.
        self.followed.clear();
        tokio::join!(self.watch(&queue, &ready), self.hear(&queue), self.resync(&queue), self.work(&queue));
    }

    async fn watch(&self, queue: &Queue<Look>, ready: &ReadyHandle) {
        let config = reflectors::config().labels(CONTROLLER_UID);
        let stream = watcher(Api::<Pod>::all(self.context.client.clone()), config);
        let mut seen: Option<BTreeSet<Uid>> = None;
        let gone = |uid: Uid, last: Option<&Pod>| {
            if self.followed.gone(&uid, last) {
                queue.add_after(Look::Grave(uid), AFTERLIFE);
            }
        };
        watch::run(stream, "pods", ready, |event: Event<Pod>| match event {
            Event::Init => seen = Some(BTreeSet::new()),
            Event::Apply(pod) | Event::InitApply(pod) => {
                let Some(uid) = pod.uid() else { return };
                seen.iter_mut().for_each(|seen| _ = seen.insert(uid.clone()));
                if self.put(pod) {
                    queue.add(Look::Pod(uid));
                }
            }
            Event::Delete(pod) => {
                // It may never have been seen before: what is known of it is in its last words.
                let last = trim(pod);
                if let Some(uid) = last.uid() {
                    self.put(last.clone());
                    gone(uid, Some(&last));
                }
            }
            Event::InitDone => {
                let seen = seen.take().unwrap_or_default();
                self.followed.keep(&seen).into_iter().for_each(|uid| gone(uid, None));
            }
        })
        .await;
    }

    /// Takes in a pod of a Job that somebody asks about, or that is not known yet; tells whether it did.
    fn put(&self, pod: Pod) -> bool {
        if pod.namespace().is_none_or(|namespace| self.context.is_excluded(&namespace)) {
            return false;
        }
        let owner = pod.owner_references().iter().find(|owner| owner.kind == "Job");
        let Some(job) = owner.map(|owner| owner.uid.clone()) else { return false };
        let needed = self.needs(&job).unwrap_or(true);
        if needed {
            self.followed.put(&job, &trim(pod));
        }
        needed
    }

    /// Whether a Job's pods matter still; nothing where the Job is not known.
    fn needs(&self, uid: &str) -> Option<bool> {
        let Some(job) = self.context.store.job(uid) else {
            // Gone before its result was stored, or not known.
            return self.context.store.deleted_job(uid).map(|_| true);
        };
        Some(self.logs(&job).is_some() && self.context.store.places(&job).is_empty())
    }

    /// What is to be kept of a Job's logs, where anybody asks.
    fn logs(&self, job: &JobSnapshot) -> Option<Logs> {
        self.context.store.effective(job)?.results.map(|results| results.logs)
    }

    /// Hears of Jobs that have changed.
    async fn hear(&self, queue: &Queue<Look>) {
        let mut news = self.context.store.job_changes();
        loop {
            match news.recv().await {
                Ok(uid) => {
                    if self.concerns(&uid) {
                        queue.add(Look::Job(uid));
                    }
                }
                Err(RecvError::Lagged(_)) => self.all_jobs(queue),
                // Only with the store itself.
                Err(RecvError::Closed) => return std::future::pending().await,
            }
        }
    }

    fn concerns(&self, uid: &str) -> bool {
        self.context.store.job(uid).is_some_and(|job| job.finished.is_none() && job.started.is_some())
    }

    fn all_jobs(&self, queue: &Queue<Look>) {
        for job in self.context.store.unfinished() {
            if job.active_pods + job.terminating_pods > 0 {
                queue.add(Look::Job(job.uid.clone()));
            }
        }
    }

    async fn resync(&self, queue: &Queue<Look>) {
        loop {
            self.followed.sweep(|job| self.needs(job));
            self.all_jobs(queue);
            tokio::time::sleep(RESYNC).await;
        }
    }

    async fn work(&self, queue: &Queue<Look>) {
        let mut captures = JoinSet::new();
        loop {
            tokio::select! {
                Some(ended) = captures.join_next(), if !captures.is_empty() => {
                    if let Err(error) = ended {
                        tracing::error!("a capture died: {error}");
                    }
                }
                look = queue.next() => {
                    let well = self.look(&look, queue, &mut captures).await;
                    queue.done(look, well);
                }
            }
        }
    }

    async fn look(&self, look: &Look, queue: &Queue<Look>, captures: &mut JoinSet<()>) -> bool {
        match look {
            Look::Grave(uid) => self.followed.cancel(uid),
            Look::Pod(uid) => {
                let Some(view) = self.followed.view(uid) else { return true };
                let Some(job) = self.context.store.job(&view.job) else {
                    // The watch of Jobs is behind.
                    if self.context.store.deleted_job(&view.job).is_none() {
                        queue.add_after(look.clone(), Duration::from_millis(200));
                    }
                    return true;
                };
                self.begin(&job, view, captures);
            }
            Look::Job(uid) => {
                let Some(job) = self.context.store.job(uid).filter(|job| job.finished.is_none()) else {
                    return true;
                };
                if self.needs(uid) != Some(true) {
                    self.followed.drop_job(uid);
                    return true;
                }
                let expected = usize::try_from(job.active_pods).unwrap_or_default();
                // Pods that were there before anybody asked, or whose event was missed.
                if self.followed.live(uid) < expected {
                    match self.capturer.pods_of(&job.namespace, uid).await {
                        Ok(pods) => pods.iter().for_each(|pod| self.followed.put(uid, pod)),
                        Err(error) => {
                            tracing::warn!(job = job.key(), "pods to be followed: {error}; trying again");
                            return false;
                        }
                    }
                }
                let now = jiff::Timestamp::now();
                if let Some(near) = at_risk::near(&job).filter(|near| *near > now) {
                    let pause = Duration::try_from(near.duration_since(now)).unwrap_or_default();
                    // Further ahead, the resync asks again.
                    if pause <= RESYNC {
                        queue.add_after(look.clone(), pause);
                    }
                }
                for pod in self.followed.of_job(uid) {
                    self.followed.view(&pod).into_iter().for_each(|view| self.begin(&job, view, captures));
                }
            }
        }
        true
    }

    /// Begins what is to be captured of a pod now.
    fn begin(&self, job: &Arc<JobSnapshot>, view: View, captures: &mut JoinSet<()>) {
        // From then on, whoever makes the result reads what is there.
        if job.finished.is_some() || view.facts.gone {
            return;
        }
        let Some(logs) = self.logs(job).filter(|logs| logs.mode == LogsMode::HeadAndTail) else { return };
        let at_risk = at_risk::is_at_risk(job, jiff::Timestamp::now());
        let (uid, view) = (view.facts.uid.clone(), Arc::new(view));
        for wish in at_risk::wishes(&view.facts, view.deleting, at_risk) {
            if view.runs.contains(&wish.id) {
                continue;
            }
            let Some(enough) = self.followed.open(&uid, &wish.id) else { continue };
            tracing::debug!(pod = view.facts.name, container = wish.container, how = ?wish.how, "captures a log");
            captures.spawn(self.clone().capture(view.clone(), wish, logs.clone(), enough));
        }
    }

    async fn capture(
        self,
        view: Arc<View>,
        wish: Wish,
        logs: Logs,
        enough: tokio_util::sync::CancellationToken,
    ) {
        let pod = &view.facts;
        let run = Run {
            namespace: &view.namespace,
            pod: &pod.name,
            uid: &pod.uid,
            container: &wish.container,
            previous: wish.previous,
            id: &wish.id,
        };
        let mut squeezed = false;
        let room = |bytes| {
            let room = self.followed.charge(&pod.uid, &wish.id, bytes, logs.per_job());
            squeezed |= !room;
            room
        };
        let node = pod.node.clone().unwrap_or_default();
        let had = self.capturer.early(run, &node, wish.how, logs.per_container(), room, enough).await;
        self.followed.close(&pod.uid, &wish.id, had.map(|content| Content { squeezed, ..content }));
    }
}
