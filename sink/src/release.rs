//! Starts queued Jobs when there is room: first in, first out per scope, skipping a head whose other scope is full.
//!
//! This only proposes. `/validate` decides each start as it decides each create, so that a picture that is behind can
//! cause a refusal and a later try, never one Job too many.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::{
    job::{JobSnapshot, JobState},
    keys,
    scope::{ScopeKey, scopes},
};
use k8s_openapi::api::batch::v1::Job;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;

use crate::{
    api::{ApiError, call},
    store::Store,
};

/// Least time between two looks.
const EVERY: Duration = Duration::from_millis(250);
/// A look without any change, for what a watch may have missed.
const ANYWAY: Duration = Duration::from_secs(5);
/// A Job whose start was refused waits this long (and up to half as long again).
const REFUSED: Duration = Duration::from_secs(5);
/// Starts per look; each of them is a change that causes another.
const AT_ONCE: usize = 50;

/// A Job, and the scopes in which it takes a slot with what each holds at most.
pub type Counted = (Arc<JobSnapshot>, Vec<(ScopeKey, u32)>);

/// The Jobs to start now, in order. `jobs` are all that are not finished; `held` tells of those that wait after a refusal.
pub fn plan(jobs: &[Counted], held: impl Fn(&str) -> bool) -> Vec<Arc<JobSnapshot>> {
    let mut active: HashMap<&ScopeKey, u32> = HashMap::new();
    for (_, scopes) in jobs.iter().filter(|(job, _)| job.is_active()) {
        for (scope, _) in scopes {
            *active.entry(scope).or_default() += 1;
        }
    }
    let mut queued: Vec<&Counted> = jobs
        .iter()
        .filter(|(job, _)| {
            job.is_queued()
                && job.state() == JobState::Suspended
                && job.deleting_since.is_none()
                && !job.is_foreign()
                && !held(&job.uid)
        })
        .collect();
    queued.sort_by(|(a, _), (b, _)| (a.created, &a.uid).cmp(&(b.created, &b.uid)));
    let mut start = Vec::new();
    for (job, scopes) in queued {
        let room = scopes.iter().all(|(scope, max)| active.get(scope).copied().unwrap_or_default() < *max);
        if room {
            for (scope, _) in scopes {
                *active.entry(scope).or_default() += 1;
            }
            start.push(job.clone());
        }
    }
    start
}

/// Starts queued Jobs for ever.
pub async fn keep(client: Client, store: Store) {
    let mut changes = store.changes();
    let mut refused: HashMap<String, Instant> = HashMap::new();
    loop {
        let now = Instant::now();
        refused.retain(|_, until| *until > now);
        for job in plan(&counted(&store), |uid| refused.contains_key(uid)).into_iter().take(AT_ONCE) {
            match release(&client, &job).await {
                Ok(Some(released)) => {
                    tracing::info!(job = job.key(), "started: there is room");
                    // What the watch will say, said before the next look counts.
                    store.put_job(released);
                }
                // Changed or gone: the watch tells.
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(job = job.key(), "stays queued: {error}");
                    let pause = REFUSED.mul_f64(1.0 + crate::spread() / 2.0);
                    refused.insert(job.uid.clone(), Instant::now() + pause);
                }
            }
        }
        tokio::time::sleep(EVERY).await;
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(ANYWAY) => {}
        }
    }
}

/// All Jobs that are not finished, with their scopes; none where none is queued.
fn counted(store: &Store) -> Vec<Counted> {
    let jobs: Vec<_> = store.jobs().into_iter().filter(|job| job.finished.is_none()).collect();
    if !jobs.iter().any(|job| job.is_queued()) {
        return Vec::new();
    }
    jobs.into_iter()
        .filter_map(|job| {
            let policies = store.matching(&job)?;
            let policies: Vec<_> = policies.iter().collect();
            let scopes = scopes(&policies, &job).into_iter().map(|(key, limit)| (key, limit.max_active_jobs));
            let scopes = scopes.collect();
            Some((job, scopes))
        })
        .collect()
}

/// Un-suspends the very version that was looked at, and takes the mark off, so that nobody starts it twice: a Job that a
/// person suspends later stays so.
async fn release(client: &Client, job: &JobSnapshot) -> Result<Option<JobSnapshot>, ApiError> {
    let api = Api::<Job>::namespaced(client.clone(), &job.namespace);
    let patch = Patch::Merge(json!({
        "metadata": {
            "uid": job.uid,
            "resourceVersion": job.resource_version,
            "annotations": {keys::QUEUED_AT: null},
        },
        "spec": {"suspend": false},
    }));
    match call(&format!("start job {}", job.key()), api.patch(&job.name, &PatchParams::default(), &patch))
        .await
    {
        Ok(started) => Ok(Some(JobSnapshot::from(&started))),
        Err(error) if error.is_conflict() || error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::{
        combine::{PolicyKind, PolicyRef},
        scope::Place,
    };

    use super::*;

    fn scope(place: Place) -> ScopeKey {
        let policy =
            PolicyRef { kind: PolicyKind::JobPolicy, namespace: None, name: "p".into(), uid: "p".into() };
        ScopeKey { policy, limit: "l".into(), place }
    }

    fn job(uid: &str, queued: bool, places: &[(&str, u32)]) -> Counted {
        let mut job = JobSnapshot { uid: uid.into(), suspended: queued, ..JobSnapshot::default() };
        if queued {
            job.annotations.insert(keys::QUEUED_AT.into(), "2026-01-01T00:00:00Z".into());
            job.annotations.insert(keys::STAMPED.into(), "queued: waits for a slot".into());
        }
        let place = |name: &str| match name {
            "cluster" => Place::Cluster,
            name => Place::Namespace(name.into()),
        };
        (Arc::new(job), places.iter().map(|(name, max)| (scope(place(name)), *max)).collect())
    }

    fn started(jobs: &[Counted]) -> Vec<String> {
        plan(jobs, |uid| uid == "held").iter().map(|job| job.uid.clone()).collect()
    }

    #[test]
    fn first_in_first_out_until_it_is_full() {
        let jobs = [
            job("c", true, &[("ci", 3)]),
            job("a", true, &[("ci", 3)]),
            job("b", true, &[("ci", 3)]),
            job("runs", false, &[("ci", 3)]),
        ];
        assert_eq!(started(&jobs), ["a", "b"]);
    }

    #[test]
    fn a_head_whose_other_scope_is_full_is_skipped() {
        let jobs = [
            job("runs", false, &[("a", 1), ("cluster", 2)]),
            job("1", true, &[("a", 1), ("cluster", 2)]),
            job("2", true, &[("b", 1), ("cluster", 2)]),
            job("3", true, &[("b", 1), ("cluster", 2)]),
        ];
        assert_eq!(started(&jobs), ["2"]);
    }

    #[test]
    fn only_our_own_are_started() {
        let mut foreign = job("kueue", true, &[]);
        Arc::make_mut(&mut foreign.0).labels.insert(keys::KUEUE_QUEUE.into(), "q".into());
        let mut by_hand = job("by-hand", true, &[]);
        Arc::make_mut(&mut by_hand.0).annotations.clear();
        let mut going = job("going", true, &[]);
        Arc::make_mut(&mut going.0).deleting_since = Some(jiff::Timestamp::UNIX_EPOCH);
        let mut ending = job("ending", true, &[]);
        Arc::make_mut(&mut ending.0).terminating_pods = 1;
        let mut copied = job("copied-mark", true, &[]);
        Arc::make_mut(&mut copied.0).annotations.remove(keys::STAMPED);
        assert!(started(&[foreign, by_hand, copied, going, ending, job("held", true, &[])]).is_empty());
        assert_eq!(started(&[job("no-limit-any-more", true, &[])]), ["no-limit-any-more"]);
    }
}
