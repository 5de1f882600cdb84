//! Prunes groups: the running sink's part of it, which knows policies and results.

use std::{collections::HashMap, sync::Arc};

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    policy::{cleanup::Keep, effective::EffectivePolicy},
};

use crate::{
    jobs::{
        marks,
        patch::{self, Written},
    },
    model::job_change::GroupKey,
    observe::key::Key,
    prune::keep,
    queueing::failure_backoff,
    reconcile::job::{ActError, Actor, Course},
};

impl Actor {
    /// Deletes the older runs of a group.
    ///
    /// # Errors
    /// Where something has to be looked at again.
    pub async fn group(&self, key: &GroupKey) -> Result<(), ActError> {
        let jobs = self.store.group(key);
        let rules: HashMap<&str, _> =
            jobs.iter().filter_map(|job| Some((job.uid.as_str(), self.store.effective(job)?))).collect();
        // Towards keeping: the largest of what the policies of its Jobs say.
        let keeps = rules.values().filter_map(keep_of);
        let Some(keep) = keeps.reduce(|a, b| Keep {
            newest: a.newest.max(b.newest),
            newest_succeeded: a.newest_succeeded.max(b.newest_succeeded),
        }) else {
            return Ok(());
        };
        let (out, kept) = keep::plan(jobs.iter().map(AsRef::as_ref), keep);
        let by_uid: HashMap<&str, &Arc<JobSnapshot>> =
            jobs.iter().map(|job| (job.uid.as_str(), job)).collect();
        let mut going = Vec::new();
        // Its outcome has to be remembered first, which takes a moment.
        let mut unsettled: Option<String> = None;
        for ranked in &out {
            let Some((job, rule)) = by_uid.get(ranked.uid.as_str()).zip(rules.get(ranked.uid.as_str()))
            else {
                continue;
            };
            let Some(cleanup) = rule.cleanup.as_ref().filter(|cleanup| cleanup.keep.is_some()) else {
                continue;
            };
            let places = self.store.places(job);
            let told = !places.is_empty() && places.iter().all(|place| !place.pending);
            if !failure_backoff::is_recorded(&self.store, job, jiff::Timestamp::now()) {
                unsettled = Some(job.key());
                continue;
            }
            match keep::may_go(job, rule.results.is_none() || told || marks::is_retired(job)) {
                Ok(()) => going.push((*job, cleanup.propagation_policy)),
                Err(spared) => tracing::debug!(job = job.key(), "not pruned: {spared}"),
            }
        }
        if going.is_empty() {
            return unsettled.map_or(Ok(()), |job| Err(ActError::Changed(job)));
        }
        for ranked in &kept {
            let Some(keeper) = by_uid.get(ranked.uid.as_str()) else { continue };
            match patch::look(&self.client, keeper).await? {
                Some(there) if there.deleting_since.is_none() => {}
                // The picture is old; the watch will bring the new one.
                _ => return Err(ActError::Changed(keeper.key())),
            }
        }
        let mut fault = unsettled.map(ActError::Changed);
        for (job, propagation) in going {
            let asked = rules.get(job.uid.as_str()).is_some_and(|rule| rule.results.is_some());
            if asked && !(marks::is_retired(job) && self.store.places(job).is_empty()) {
                let mut course = Course { places: self.store.places(job), job: (**job).clone() };
                if self.proof(&mut course).await?.is_none() {
                    self.queue.add(Key::Job(job.uid.clone()));
                    continue;
                }
            }
            // The picture is as old as the calls since then: who edits a policy meanwhile is heard.
            let now = self.store.effective(job).map(|rule| (rule.results.is_some(), keep_of(&rule)));
            let then = rules.get(job.uid.as_str()).map(|rule| (rule.results.is_some(), keep_of(rule)));
            if now != then {
                return Err(ActError::Changed(job.key()));
            }
            match patch::delete(&self.client, job, propagation, false).await {
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

fn keep_of(rule: &EffectivePolicy) -> Option<Keep> {
    rule.cleanup.as_ref()?.keep
}
