//! Carries out what the plans say: bounded in time and number, each Job by itself.

use std::{collections::HashMap, sync::Arc, time::Duration};

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    kube::error::ApiError,
    policy::{
        cleanup::Propagation,
        results::{Results, StorageType},
    },
};
use kube::Client;
use tokio::task::JoinSet;

use crate::{
    harvest::{collector::Capturer, pack, pod_tracker::Followed, redact},
    jobs::{
        marks,
        patch::{self, Written},
        plan::{self, Step},
    },
    metrics::SinkMetrics,
    model::{result_ref::ResultRef, stored_result},
    notify::{recorder::Recorder, result_events},
    observe::{
        key::{Key, MAX_IN_PROGRESS},
        store::Store,
    },
    queueing::failure_backoff,
    result::writer::{self, CommitError, Committed},
    runtime::{
        concurrency::{self, Slot, Slots},
        work_queue::Queue,
    },
};

/// Jobs and groups that are worked on at a time.
const CONCURRENCY: usize = 24;
/// Longest work on one Job, without the wait for logs; only reached where everything hangs.
const BOUND: Duration = Duration::from_secs(150);
/// Most steps with one Job before it is put back into the queue: the sequence has four, the rest are Jobs that keep
/// changing.
const STEPS: usize = 12;

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// A call failed.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The result is not stored.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// What was looked at has changed.
    #[error("{0} has changed meanwhile")]
    Changed(String),
    /// It took too long.
    #[error("not done within {} s", BOUND.as_secs())]
    Slow,
}

impl ActError {
    /// Whatever else is tried in the namespace will probably end likewise.
    fn is_of_namespace(&self) -> bool {
        match self {
            Self::Api(error) | Self::Commit(CommitError::Api(error)) => {
                error.is_rejected() || error.is_timeout()
            }
            Self::Slow => true,
            _ => false,
        }
    }

    fn is_terminating(&self) -> bool {
        match self {
            Self::Api(error) | Self::Commit(CommitError::Api(error)) => error.is_terminating(),
            _ => false,
        }
    }

    /// The same write will be refused again.
    fn is_final(&self) -> bool {
        match self {
            Self::Commit(CommitError::Api(error)) => error.is_rejected() || error.is_not_found(),
            Self::Commit(CommitError::NamesTaken { .. } | CommitError::Json(..)) => true,
            _ => false,
        }
    }
}

/// What one Job's sequence knows by itself, before the watch brings it.
pub(crate) struct Course {
    pub(crate) job: JobSnapshot,
    pub(crate) places: Vec<ResultRef>,
}

/// The leader's hands.
#[derive(Clone)]
pub struct Actor {
    /// Talks to the cluster.
    pub client: Client,
    /// What is known.
    pub store: Store,
    /// What is to be looked at.
    pub queue: Queue<Key>,
    /// Reads pods and logs.
    pub capturer: Capturer,
    /// Pods that were followed, and what was captured of those that are gone.
    pub followed: Followed,
    /// Writes Events.
    pub recorder: Recorder,
    /// Counts.
    pub metrics: SinkMetrics,
}

impl Actor {
    /// Works the queue off for ever; dropped with all it has begun where this sink stops leading.
    pub async fn work(self) {
        let actor = Arc::new(self);
        let slots = Slots::new(CONCURRENCY);
        let mut tasks: JoinSet<(Key, bool)> = JoinSet::new();
        let mut running: HashMap<tokio::task::Id, Key> = HashMap::new();
        loop {
            tokio::select! {
                Some(ended) = tasks.join_next_with_id(), if !tasks.is_empty() => match ended {
                    Ok((id, (key, well))) => {
                        running.remove(&id);
                        actor.queue.done(key, well);
                    }
                    Err(error) => {
                        tracing::error!("an action died: {error}");
                        if let Some(key) = running.remove(&error.id()) {
                            actor.queue.done(key, false);
                        }
                    }
                },
                (slot, key) = async { (slots.take().await, actor.queue.next().await) }, if tasks.len() < MAX_IN_PROGRESS => {
                    let (own, work) = (actor.clone(), key.clone());
                    let task = tasks.spawn(async move {
                        let well = own.process(&work, slot).await;
                        (work, well)
                    });
                    running.insert(task.id(), key);
                }
            }
        }
    }

    async fn process(&self, key: &Key, slot: Slot) -> bool {
        let work = async {
            match key {
                Key::Job(uid) => self.job(uid).await,
                Key::Group(group) => self.group(group).await,
            }
        };
        let takes_long = || self.queue.struck(key);
        let outcome = slot.run(BOUND, Box::pin(work), takes_long).await.unwrap_or(Err(ActError::Slow));
        let Err(error) = outcome else { return true };
        if error.is_of_namespace() {
            self.queue.struck(key);
        }
        let (what, name) = match key {
            Key::Job(uid) => ("harvest", self.store.job(uid).map_or_else(|| uid.clone(), |job| job.key())),
            Key::Group((namespace, group)) => ("prune", format!("{namespace}/{}", group.value)),
        };
        self.metrics.fault(what);
        match error {
            ActError::Changed(_) => tracing::debug!(name, "{what}: {error}; looking again"),
            // All that is in a namespace which is deleted: nothing is wrong, and it ends by itself.
            error if error.is_terminating() => tracing::debug!(name, "{what}: {error}"),
            error => tracing::warn!(name, "{what}: {error}; trying again"),
        }
        false
    }

    /// Brings one Job from where it stands to the end of its sequence, asking the policies anew before each step.
    ///
    /// # Errors
    /// Where a step fails; the next try begins with it.
    pub async fn job(&self, uid: &str) -> Result<(), ActError> {
        let Some(job) = self.store.job(uid) else { return self.gone(uid).await };
        let mut course = Course { places: self.store.places(&job), job: (*job).clone() };
        for _ in 0..STEPS {
            let Some(effective) = self.store.effective(&course.job) else { return Ok(()) };
            let Some(step) = plan::next(&course.job, &effective, &course.places) else { return Ok(()) };
            let written = match step {
                // It is where nobody lets us look any more.
                Step::Harvest(results) if self.is_out_of_sight(&course.job, &results) => return Ok(()),
                Step::Harvest(results) => {
                    let group = self.store.group_of(uid).map(|(_, group)| group.value);
                    course.places = vec![self.harvest(&course.job, &results, group.as_deref(), false).await?];
                    // It took as long as its logs did: whoever changed the Job meanwhile is heard.
                    Written::Changed
                }
                Step::Mark(ttl) => match (self.proof(&mut course).await?, &course.job.finished) {
                    (Some(result), Some(finished)) => {
                        patch::mark(&self.client, &course.job, finished.outcome, &result.name, ttl).await?
                    }
                    _ => continue,
                },
                Step::Announce => {
                    self.announce(uid, &mut course.places).await?;
                    continue;
                }
                // Who waits after failures goes by it: it is taken in within a moment.
                Step::Delete
                    if !failure_backoff::is_recorded(&self.store, &course.job, jiff::Timestamp::now()) =>
                {
                    return Err(ActError::Changed(course.job.key()));
                }
                Step::Delete => {
                    if self.proof(&mut course).await?.is_none() {
                        continue;
                    }
                    // Reading took a moment: the policies have the last word.
                    let still = self.store.effective(&course.job);
                    if still.and_then(|now| plan::next(&course.job, &now, &course.places))
                        != Some(Step::Delete)
                    {
                        continue;
                    }
                    let deleted =
                        patch::delete(&self.client, &course.job, Propagation::Background, false).await?;
                    if let Written::Done(_) = deleted {
                        tracing::info!(job = course.job.key(), "deleted after its harvest");
                        return Ok(());
                    }
                    deleted
                }
                // What a policy that cannot be read asks for is not known.
                Step::Restore(_) if self.store.is_any_policy_unreadable() => return Ok(()),
                Step::Restore(ttl) => patch::restore(&self.client, &course.job, ttl).await?,
            };
            let there = match written {
                Written::Done(now) => Some(*now),
                Written::Changed => patch::look(&self.client, &course.job).await?,
                Written::Gone => None,
            };
            match there {
                Some(now) => course.job = now,
                // What is stored of it is still told.
                None => return self.announce(uid, &mut course.places).await,
            }
        }
        Err(ActError::Changed(course.job.key()))
    }

    /// Reads the result: labels alone are none. Places that hold none are dropped, and the Job is harvested.
    pub(crate) async fn proof(&self, course: &mut Course) -> Result<Option<Committed>, ActError> {
        while let Some(place) = course.places.first().cloned() {
            let found =
                writer::read_at(&self.client, place.kind, &place.namespace, &place.name, &course.job.uid)
                    .await?;
            if found.is_some() {
                return Ok(found);
            }
            tracing::debug!(job = course.job.key(), place = place.name, "no result, whatever its labels say");
            self.drop_place(&course.job.uid, &place);
            course.places.remove(0);
        }
        Ok(None)
    }

    fn drop_place(&self, uid: &str, place: &ResultRef) {
        self.store.remove_results(|job, known| job == uid && known.is_at(place));
    }

    /// Captures and stores. What is stored already is adopted, before anything is read.
    async fn harvest(
        &self,
        job: &JobSnapshot,
        results: &Results,
        group: Option<&str>,
        gone: bool,
    ) -> Result<ResultRef, ActError> {
        let secrets = self.store.secrets.is_allowed();
        let committed = match writer::find(&self.client, &job.namespace, &job.name, &job.uid, secrets).await?
        {
            Some(found) => found,
            // On the heap: what it takes is large, and most looks at a Job need none of it.
            None => Box::pin(self.store_result(job, results, group, gone)).await?,
        };
        let pending = !committed.manifest.announcements_pending.is_empty();
        let place = ResultRef {
            namespace: job.namespace.clone(),
            name: committed.name,
            kind: committed.kind,
            pending,
            outbox: committed.manifest.cloud_events_pending.keys().cloned().collect(),
            ..ResultRef::default()
        };
        self.store.put_result(&job.uid, place.clone());
        self.followed.drop_job(&job.uid);
        Ok(place)
    }

    /// A Job that is marked, whose result may be in a Secret that cannot be read: then it is neither lost nor to be made
    /// again, and all that can be done is to wait for the right.
    fn is_out_of_sight(&self, job: &JobSnapshot, results: &Results) -> bool {
        results.storage_type == StorageType::Secret
            && !self.store.secrets.is_allowed()
            && marks::is_told_where(job)
    }

    async fn store_result(
        &self,
        job: &JobSnapshot,
        results: &Results,
        group: Option<&str>,
        gone: bool,
    ) -> Result<Committed, ActError> {
        let secrets = self.store.secrets.is_allowed();
        let withheld =
            |wanted| (wanted == StorageType::Secret && !secrets).then(|| self.store.secrets.denial());
        let mut logs = results.logs.clone();
        if withheld(results.storage_type).is_some() {
            logs = redact::nothing_written(&logs);
        }
        // The object store has readers of its own, whom nobody has asked whether they may read Secrets.
        let capturer = match results.storage_type {
            StorageType::Secret => self.capturer.clone().with_objects(None),
            StorageType::ConfigMap => self.capturer.clone(),
        };
        let capture = capturer.of_job(&job.namespace, &job.uid, &logs, &self.followed);
        let (mut captured, _memory) = concurrency::aside(capture).await?;
        // Capturing took a while: who asks for a Secret meanwhile is heard.
        let now = self.store.effective(job).and_then(|said| said.results.map(|results| results.storage_type));
        let wanted =
            if now == Some(StorageType::Secret) { StorageType::Secret } else { results.storage_type };
        if wanted == StorageType::Secret {
            concurrency::aside(self.capturer.forget_objects(job, &mut captured)).await;
        }
        let objects = captured.object_urls();
        let withheld = withheld(wanted);
        if withheld.is_some() {
            logs = redact::nothing_written(&logs);
            redact::conceal(&mut captured);
        }
        let Some(mut packed) = pack::pack(job, group, captured, &logs) else {
            return Err(ActError::Changed(job.key()));
        };
        match &withheld {
            Some(why) => {
                packed.withhold(why.as_deref().unwrap_or("the rights on Secrets are not known"));
            }
            None => packed.kind = wanted.into(),
        }
        if wanted == StorageType::Secret {
            packed.manifest.public_line = Some(redact::line(job, &packed.manifest.pods));
        }
        packed.requesting_policies =
            stored_result::requesting_policies(&self.store.matching(job).unwrap_or_default());
        packed.manifest.cloud_events_pending = self.store.events_of(job);
        packed.policy_uids = self.store.requesting_policies(job);
        let completeness = &mut packed.manifest.completeness;
        if gone && !completeness.complete {
            completeness.lost.push("the Job was deleted before its result was stored".to_owned());
        }
        match writer::commit(&self.client, packed, secrets).await {
            Ok(committed) => {
                self.queue.cleared(&Key::Job(job.uid.clone()));
                if committed.fresh {
                    concurrency::aside(self.capturer.tidy(job, &objects)).await;
                    let manifest = &committed.manifest;
                    let lag = jiff::Timestamp::now().duration_since(manifest.job.finished).as_secs_f64();
                    self.metrics.harvested(manifest.outcome, manifest.completeness.complete, lag);
                    if withheld.is_some() {
                        self.metrics.result_withheld();
                    }
                    let containers = manifest.pods.iter().flat_map(|pod| &pod.containers);
                    self.metrics.restarts(containers.map(|c| c.restart_count).max().unwrap_or_default());
                    manifest.cause.into_iter().for_each(|cause| self.metrics.job_failed(cause));
                    tracing::info!(job = job.key(), result = committed.name, "stored the result");
                }
                Ok(committed)
            }
            Err(error) => {
                let told = match &error {
                    CommitError::Api(api) => api.is_rejected() && !api.is_terminating(),
                    CommitError::NamesTaken { .. } => true,
                    CommitError::Races(_) | CommitError::Json(..) => false,
                };
                if told {
                    self.metrics.result_lost(if gone { "gone" } else { "refused" });
                    result_events::publish_lost(&self.recorder, job, &error.to_string(), gone).await?;
                }
                Err(error.into())
            }
        }
    }

    /// Tells what is pending.
    async fn announce(&self, uid: &str, places: &mut Vec<ResultRef>) -> Result<(), ActError> {
        for place in std::mem::take(places) {
            if place.pending {
                let (namespace, name) = (&place.namespace, &place.name);
                let Some(found) = writer::read_at(&self.client, place.kind, namespace, name, uid).await?
                else {
                    // The watch is behind, or somebody deleted the result: nothing is left to tell from.
                    self.drop_place(uid, &place);
                    continue;
                };
                result_events::publish_pending(&self.client, &self.recorder, &found).await?;
                let told = ResultRef { pending: false, ..place };
                self.store.put_result(uid, told.clone());
                places.push(told);
            } else {
                places.push(place);
            }
        }
        Ok(())
    }

    /// A Job that is gone: what was not stored of it is, as far as it can still be had, and what is stored is told.
    async fn gone(&self, uid: &str) -> Result<(), ActError> {
        if let Some(grave) = self.store.deleted_job(uid) {
            let stored = self.harvest(&grave.job, &grave.results, grave.group.as_deref(), true).await;
            match stored {
                // The last word is spoken: an Event says so, but where the namespace is going, too.
                Err(error) if error.is_final() || error.is_terminating() => {
                    tracing::debug!(job = grave.job.key(), "deleted before its result was stored: {error}");
                }
                Err(error) => {
                    self.store.renew_deleted_job(uid);
                    return Err(error);
                }
                Ok(_) => {}
            }
            self.store.forget_deleted_job(uid);
            self.followed.drop_job(uid);
        }
        self.announce(uid, &mut self.store.places_of(uid)).await
    }
}
