//! Carries out what the plans say: bounded in time and number, each Job by itself.

use std::{collections::HashMap, sync::Arc, time::Duration};

use job_handler_shared::{
    job::JobSnapshot,
    keys,
    policy::{Keep, Logs, Propagation},
};
use kube::Client;
use tokio::task::JoinSet;

use crate::{
    announce,
    api::ApiError,
    capture::Capturer,
    commit::{self, CommitError, Committed},
    events::Teller,
    mark::{self, Written},
    metrics::SinkMetrics,
    plan::{self, Step},
    prune,
    queue::Queue,
    result,
    store::{GroupKey, ResultRef, Store, Uid},
};

/// Jobs and groups that are worked on at a time.
const CONCURRENCY: usize = 24;
/// Longest time for one Job; capture has a shorter one of its own, so that this is only reached where everything hangs.
const BOUND: Duration = Duration::from_secs(150);
/// Changed Jobs are looked at again this often before they are put back into the queue.
const ROUNDS: usize = 5;

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A Job, there or gone, and its result.
    Job(Uid),
    /// The Jobs of a group.
    Group(GroupKey),
}

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
    /// Writes Events.
    pub teller: Teller,
    /// Counts.
    pub metrics: SinkMetrics,
}

impl Actor {
    /// Works the queue off for ever; dropped with all it has begun where this sink stops leading.
    pub async fn work(self) {
        let actor = Arc::new(self);
        let mut tasks: JoinSet<(Key, bool)> = JoinSet::new();
        let mut running: HashMap<tokio::task::Id, Key> = HashMap::new();
        loop {
            tokio::select! {
                Some(ended) = tasks.join_next_with_id(), if !tasks.is_empty() => match ended {
                    Ok((id, (key, well))) => {
                        running.remove(&id);
                        actor.queue.done(key, well, crate::spread());
                    }
                    Err(error) => {
                        tracing::error!("an action died: {error}");
                        if let Some(key) = running.remove(&error.id()) {
                            actor.queue.done(key, false, crate::spread());
                        }
                    }
                },
                key = actor.queue.next(), if tasks.len() < CONCURRENCY => {
                    let (own, work) = (actor.clone(), key.clone());
                    let task = tasks.spawn(async move {
                        let well = own.process(&work).await;
                        (work, well)
                    });
                    running.insert(task.id(), key);
                }
            }
        }
    }

    async fn process(&self, key: &Key) -> bool {
        let work = async {
            match key {
                Key::Job(uid) => self.job(uid).await,
                Key::Group(group) => self.group(group).await,
            }
        };
        let outcome = tokio::time::timeout(BOUND, Box::pin(work)).await.unwrap_or(Err(ActError::Slow));
        let Err(error) = outcome else { return true };
        let (what, name) = match key {
            Key::Job(uid) => ("harvest", self.store.job(uid).map_or_else(|| uid.clone(), |job| job.key())),
            Key::Group((namespace, group)) => ("prune", format!("{namespace}/{}", group.value)),
        };
        self.metrics.fault(what);
        match error {
            ActError::Changed(_) => tracing::debug!(name, "{what}: {error}; looking again"),
            error => tracing::warn!(name, "{what}: {error}; trying again"),
        }
        false
    }

    /// Brings one Job from where it stands to the end of its sequence.
    ///
    /// # Errors
    /// Where a step fails; the next try begins with it.
    pub async fn job(&self, uid: &str) -> Result<(), ActError> {
        let stored = self.store.result(uid);
        let Some(job) = self.store.job(uid) else { return self.tell_of_gone(uid, stored).await };
        let Some(effective) = self.store.effective(&job) else { return Ok(()) };
        let mut job = (*job).clone();
        let mut committed: Option<Committed> = None;
        let mut gone = false;
        for step in plan::steps(&job, &effective, stored.as_ref()) {
            match step {
                Step::Harvest(logs) => committed = Some(self.harvest(&job, &logs, None).await?),
                Step::Mark(ttl) if !gone => {
                    let name = committed
                        .as_ref()
                        .map(|c| c.name.clone())
                        .or(stored.as_ref().map(|s| s.name.clone()));
                    match self.mark(&job, &name.unwrap_or_default(), ttl).await? {
                        Some(marked) => job = marked,
                        None => gone = true,
                    }
                }
                Step::Announce => {
                    let found = match (committed.take(), &stored) {
                        (Some(committed), _) => Some(committed),
                        (None, Some(at)) => {
                            commit::read_at(&self.client, &at.namespace, &at.name, uid).await?
                        }
                        (None, None) => None,
                    };
                    self.announce(uid, found).await?;
                }
                Step::Delete if !gone => {
                    match mark::delete(&self.client, &job, Propagation::Background, false).await? {
                        Written::Done(_) => tracing::info!(job = job.key(), "deleted after its harvest"),
                        Written::Gone => {}
                        Written::Changed => return Err(ActError::Changed(job.key())),
                    }
                }
                Step::Mark(_) | Step::Delete => {}
            }
        }
        Ok(())
    }

    /// Captures and stores. What is stored already is adopted, before anything is read.
    async fn harvest(&self, job: &JobSnapshot, logs: &Logs, at: Option<&str>) -> Result<Committed, ActError> {
        let (namespace, uid) = (&job.namespace, &job.uid);
        let committed = match commit::find(&self.client, namespace, &job.name, uid, at).await? {
            Some(found) => found,
            None => self.store_result(job, logs).await?,
        };
        let pending = !committed.manifest.announcements_pending.is_empty();
        self.store.put_result(
            uid,
            ResultRef { namespace: namespace.clone(), name: committed.name.clone(), pending },
        );
        Ok(committed)
    }

    async fn store_result(&self, job: &JobSnapshot, logs: &Logs) -> Result<Committed, ActError> {
        let pods = self.capturer.pods_of(&job.namespace, &job.uid).await?;
        let captured = self.capturer.pods(pods, logs).await;
        let group = self.store.group_of(&job.uid).map(|(_, group)| group.value);
        let Some(packed) = result::pack(job, group.as_deref(), captured, logs) else {
            return Err(ActError::Changed(job.key()));
        };
        match commit::commit(&self.client, packed).await {
            Ok(committed) => {
                if committed.fresh {
                    let manifest = &committed.manifest;
                    let lag = jiff::Timestamp::now().duration_since(manifest.job.finished).as_secs_f64();
                    self.metrics.harvested(manifest.outcome, manifest.completeness.complete, lag);
                    manifest.cause.into_iter().for_each(|cause| self.metrics.job_failed(cause));
                    tracing::info!(job = job.key(), result = committed.name, "stored the result");
                }
                Ok(committed)
            }
            Err(error) => {
                let told = match &error {
                    CommitError::Api(api) => api.is_unwanted() && !api.is_terminating(),
                    CommitError::NamesTaken { .. } => true,
                    CommitError::Races(_) | CommitError::Json(..) => false,
                };
                if told {
                    announce::announce_lost(&self.teller, job, &error.to_string()).await?;
                }
                Err(error.into())
            }
        }
    }

    /// Marks the Job, looking again where it has changed; nothing where it is gone.
    async fn mark(
        &self,
        job: &JobSnapshot,
        result: &str,
        ttl: plan::Ttl,
    ) -> Result<Option<JobSnapshot>, ActError> {
        let (mut job, mut ttl) = (job.clone(), ttl);
        for _ in 0..ROUNDS {
            let Some(finished) = job.finished.clone() else { return Err(ActError::Changed(job.key())) };
            match mark::mark(&self.client, &job, finished.outcome, result, ttl).await? {
                Written::Done(marked) => return Ok(Some(*marked)),
                Written::Gone => return Ok(None),
                Written::Changed => match mark::look(&self.client, &job).await? {
                    None => return Ok(None),
                    Some(fresh) => {
                        let Some(effective) = self.store.effective(&fresh) else { return Ok(None) };
                        // A forerunner may have come as far as here: then its TTL stands.
                        let marked = fresh.annotations.get(keys::RESULTS).is_some_and(|name| name == result);
                        if marked {
                            return Ok(Some(fresh));
                        }
                        ttl = plan::ttl(&fresh, &finished, &effective);
                        job = fresh;
                    }
                },
            }
        }
        Err(ActError::Changed(job.key()))
    }

    async fn announce(&self, uid: &str, committed: Option<Committed>) -> Result<(), ActError> {
        let Some(committed) = committed else {
            // The watch is behind, or somebody deleted the result: nothing is left to tell from.
            self.store.drop_results(|job, place| job == uid && place.pending);
            return Ok(());
        };
        announce::announce(&self.client, &self.teller, &committed).await?;
        let namespace = committed.manifest.job.namespace.clone();
        self.store.put_result(uid, ResultRef { namespace, name: committed.name, pending: false });
        Ok(())
    }

    /// A Job that is gone is still told of, from its manifest.
    async fn tell_of_gone(&self, uid: &str, stored: Option<ResultRef>) -> Result<(), ActError> {
        let Some(at) = stored.filter(|at| at.pending) else { return Ok(()) };
        let found = commit::read_at(&self.client, &at.namespace, &at.name, uid).await?;
        self.announce(uid, found).await
    }

    /// Deletes the older runs of a group.
    ///
    /// # Errors
    /// Where something has to be looked at again.
    pub async fn group(&self, key: &GroupKey) -> Result<(), ActError> {
        let jobs = self.store.group(key);
        let rules: HashMap<&str, _> =
            jobs.iter().filter_map(|job| Some((job.uid.as_str(), self.store.effective(job)?))).collect();
        // Towards keeping: the largest of what the policies of its Jobs say.
        let keeps = rules.values().filter_map(|rule| rule.cleanup.as_ref()?.keep);
        let Some(keep) = keeps.reduce(|a, b| Keep {
            newest: a.newest.max(b.newest),
            newest_succeeded: a.newest_succeeded.max(b.newest_succeeded),
        }) else {
            return Ok(());
        };
        let (out, kept) = prune::plan(jobs.iter().map(AsRef::as_ref), keep);
        let by_uid: HashMap<&str, &Arc<JobSnapshot>> =
            jobs.iter().map(|job| (job.uid.as_str(), job)).collect();
        let mut going = Vec::new();
        for ranked in &out {
            let Some((job, rule)) = by_uid.get(ranked.uid.as_str()).zip(rules.get(ranked.uid.as_str()))
            else {
                continue;
            };
            let Some(cleanup) = rule.cleanup.as_ref().filter(|cleanup| cleanup.keep.is_some()) else {
                continue;
            };
            let harvested =
                rule.results.is_none() || self.store.result(&job.uid).is_some_and(|at| !at.pending);
            match prune::may_go(job, harvested) {
                Ok(()) => going.push((*job, cleanup.propagation_policy)),
                Err(spared) => tracing::debug!(job = job.key(), "not pruned: {spared}"),
            }
        }
        if going.is_empty() {
            return Ok(());
        }
        for ranked in &kept {
            let Some(keeper) = by_uid.get(ranked.uid.as_str()) else { continue };
            match mark::look(&self.client, keeper).await? {
                Some(there) if there.deleting_since.is_none() => {}
                // The picture is old; the watch will bring the new one.
                _ => return Err(ActError::Changed(keeper.key())),
            }
        }
        let mut fault = None;
        for (job, propagation) in going {
            match mark::delete(&self.client, job, propagation, false).await {
                Ok(Written::Done(_)) => {
                    self.metrics.pruned();
                    tracing::info!(job = job.key(), group = key.1.value, "pruned: a newer run is there");
                }
                Ok(Written::Gone) => {}
                Ok(Written::Changed) => fault = Some(ActError::Changed(job.key())),
                Err(error) => fault = Some(error.into()),
            }
        }
        fault.map_or(Ok(()), Err)
    }
}
