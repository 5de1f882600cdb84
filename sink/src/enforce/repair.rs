//! Repairs Jobs that the webhook missed: sets the stamps that can still be set, and suspends the newest Jobs that exceed
//! a limit that queues.
//!
//! A Job was missed if it has no `stamped` annotation although a policy that selects it, and that does more than refuse,
//! was in force before it was created. Jobs that are older than a policy are not changed, so that no change of a policy
//! ends a running Job.

use std::{
    collections::HashMap,
    convert::Infallible,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::{
    job::{scope::ScopeKey, snapshot::JobSnapshot},
    keys,
    kube::error::ApiError,
    names,
    policy::limit::{Limit, WhenFull},
};
use kube::Client;
use serde_json::json;

use crate::{
    enforce::{
        excess::{LimitedBy, excess},
        repair_patch::repair_patch,
    },
    jobs::patch::{self, Written},
    model::policy_entry::PolicyEntry,
    notify::recorder::{EventSpec, EventType, Recorder, job_reference},
    observe::store::Store,
    runtime::resync::RESYNC,
};

/// Least time between two rounds.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Pause before a failed repair is retried.
const RETRY_PAUSE: Duration = Duration::from_secs(30);

/// Repairs missed Jobs until it is dropped.
pub(crate) async fn run(client: Client, store: Store, recorder: Recorder) -> Infallible {
    let mut changes = store.changes();
    let mut failed: HashMap<String, Instant> = HashMap::new();
    loop {
        failed.retain(|_, at| at.elapsed() < RETRY_PAUSE);
        let missed = missed_jobs(&store, &failed);
        if !missed.is_empty() {
            let excess = excess(&limited_jobs(&store), &missed);
            for missed in &missed {
                let over = excess.get(&missed.job.uid);
                match repair(&client, missed, over).await {
                    Ok(Some((now, text))) => {
                        store.put_job(now);
                        tracing::info!(
                            job = missed.job.key(),
                            "repaired a Job that the webhook missed: {text}"
                        );
                        publish(&recorder, &missed.job, &text, over).await;
                    }
                    // Changed or deleted: the watch reports it.
                    Ok(None) => {}
                    Err(error) => {
                        let job = missed.job.key();
                        tracing::warn!(job, "cannot repair a Job that the webhook missed: {error}; retrying");
                        failed.insert(missed.job.uid.clone(), Instant::now());
                    }
                }
            }
        }
        tokio::time::sleep(MIN_INTERVAL).await;
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(RESYNC) => {}
        }
    }
}

fn is_unstamped(job: &JobSnapshot) -> bool {
    !job.annotations.contains_key(keys::STAMPED)
        && job.finished.is_none()
        && job.deleting_since.is_none()
        && !job.is_managed_by_others()
}

/// The missed Jobs, with the policies that were in force before they were created.
fn missed_jobs(store: &Store, failed: &HashMap<String, Instant>) -> Vec<LimitedBy> {
    let jobs = store.jobs().into_iter().filter(|job| is_unstamped(job) && !failed.contains_key(&job.uid));
    let mut since: Option<HashMap<String, Timestamp>> = None;
    jobs.filter_map(|job| {
        let since = since.get_or_insert_with(|| in_force_since(store));
        let mut policies = store.matching(&job)?;
        // Times have a resolution of one second.
        policies.retain(|policy| since.get(&policy.reference.uid).is_some_and(|since| job.created > *since));
        let unaffected = policies.iter().all(|policy| policy.never_changes_jobs());
        (!unaffected).then_some(LimitedBy { job, policies })
    })
    .collect()
}

/// Since when the current generation of each policy has been in force, by uid.
fn in_force_since(store: &Store) -> HashMap<String, Timestamp> {
    let in_force = |entry: PolicyEntry| {
        let current = entry.status.observed_generation == Some(entry.generation);
        Some((entry.reference.uid, entry.status.in_force_since.filter(|_| current)?.0))
    };
    store.policy_entries().into_iter().filter_map(in_force).collect()
}

fn limited_jobs(store: &Store) -> Vec<LimitedBy> {
    let jobs = store.unfinished().into_iter();
    jobs.filter_map(|job| Some(LimitedBy { policies: store.matching(&job)?, job })).collect()
}

/// Patches the observed version. Returns the Job and the text of its annotation, or nothing where the Job has changed.
async fn repair(
    client: &Client,
    LimitedBy { job, policies }: &LimitedBy,
    over: Option<&(ScopeKey, Limit)>,
) -> Result<Option<(JobSnapshot, String)>, ApiError> {
    let now = Timestamp::now();
    let mut repair = repair_patch(job, &policies.iter().collect::<Vec<_>>(), now);
    if let Some((scope, limit)) = over
        && limit.when_full == WhenFull::Queue
    {
        repair.queue(scope, now);
    }
    let text = repair.explanation.text();
    repair.annotations.insert(keys::STAMPED.to_owned(), text.clone().into());
    let repaired = json!({
        "metadata": {
            "uid": job.uid,
            "resourceVersion": job.resource_version,
            "labels": repair.labels,
            "annotations": repair.annotations,
        },
        "spec": repair.spec,
    });
    let what = format!("repair job {}", job.key());
    match patch::classify_write(patch::merge(client, job, &what, repaired).await)? {
        Written::Done(now) => Ok(Some((*now, text))),
        Written::Changed | Written::Gone => Ok(None),
    }
}

async fn publish(recorder: &Recorder, job: &JobSnapshot, text: &str, over: Option<&(ScopeKey, Limit)>) {
    let (event_type, more) = match over {
        Some((scope, limit)) if limit.when_full == WhenFull::Reject => {
            let more = format!(
                ". It exceeds limit \"{}\" of {} (max allowed: {}) and keeps running; no other Job starts until there is \
                 room",
                scope.limit, scope.policy, limit.max_active_jobs
            );
            (EventType::Warning, more)
        }
        Some(_) => (EventType::Warning, ". It was suspended because no slot was free".to_owned()),
        None => (EventType::Normal, String::new()),
    };
    let event = EventSpec {
        namespace: job.namespace.clone(),
        name: names::event_name(&job.name, &job.uid, keys::REASON_HEALED),
        event_type,
        reason: keys::REASON_HEALED,
        action: "Stamped",
        note: format!("The webhook missed this Job; the sink stamped it: {text}{more}"),
        regarding: job_reference(&job.namespace, &job.name, Some(&job.uid)),
        related: None,
    };
    if let Err(error) = recorder.publish(&event).await {
        tracing::warn!(job = job.key(), "cannot write the Event about a repair: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_of_other_queue_managers_are_not_repaired() {
        let mut job = JobSnapshot::default();
        assert!(is_unstamped(&job));
        job.labels.insert(keys::KUEUE_QUEUE.into(), "q".into());
        assert!(!is_unstamped(&job));
    }
}
