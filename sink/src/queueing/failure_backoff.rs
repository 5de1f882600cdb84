//! Records failed runs of groups in the ledgers, so that a failed Job can be deleted without losing the group's failure
//! backoff, and removes streaks that have expired. Also says which queued Jobs wait for the end of a backoff.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::{
    job::{
        group::GroupId,
        scope::group_of_job,
        snapshot::{JobSnapshot, Outcome},
    },
    kube::error::{ApiError, call},
    ledger::{
        crd::{BACKOFF, JobLedger},
        failure_streak::{self, FailureStreak},
    },
    policy::{limit::FailureBackoff, parsed::Policy, reference::PolicyRef, set::PolicySet},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Map, Value, json};

use crate::{
    PROGRAM,
    model::job_change::GroupKey,
    observe::{ledger_index::Ledger, store::Store},
};

/// Least time between two rounds.
const MIN_INTERVAL: Duration = Duration::from_millis(250);
/// How often all Jobs are examined, not only those that ended since the last round.
const FULL_INTERVAL: Duration = Duration::from_secs(30);
/// Ended Jobs in memory that could not be recorded yet.
const MAX_UNRECORDED: usize = 5000;
/// The pause after a failed write.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Attempts to write a ledger that the webhooks write too.
const MAX_ATTEMPTS: usize = 8;

/// The finished runs of groups, with the backoffs that policies set for them.
type GroupRuns = BTreeMap<GroupKey, (Vec<Arc<JobSnapshot>>, Vec<FailureBackoff>)>;

/// The failure backoff of a group that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackoffWait {
    pub(crate) until: Timestamp,
    pub(crate) policy: PolicyRef,
    /// The group's value.
    pub(crate) group: String,
    /// Failures in a row.
    pub(crate) failures: u32,
    /// The Job that failed last.
    pub(crate) last_failed: String,
}

/// Records the runs that end, until it is dropped.
pub(crate) async fn run(client: Client, store: Store, own_namespace: Arc<str>) -> Infallible {
    let ledgers = Api::<JobLedger>::namespaced(client, &own_namespace);
    let mut changes = store.changes();
    let mut all: Option<(Instant, Arc<PolicySet>)> = None;
    // Ended Jobs that are not recorded yet. Deleted ones are known nowhere else.
    let mut unrecorded: Vec<Arc<JobSnapshot>> = Vec::new();
    loop {
        // New policies may count runs that the old ones did not.
        let policies = store.policies();
        let (ended, complete) = store.drain_finished();
        let due = !complete
            || all
                .as_ref()
                .is_none_or(|(at, by)| at.elapsed() >= FULL_INTERVAL || !Arc::ptr_eq(by, &policies));
        if due {
            all = Some((Instant::now(), policies));
        }
        unrecorded.extend(ended);
        let more = if due { store.jobs() } else { Vec::new() };
        let runs = collect(&store, unrecorded.iter().cloned().chain(more));
        let mut namespaces: BTreeMap<&str, ()> =
            runs.keys().map(|(namespace, _)| (namespace.as_str(), ())).collect();
        let names = if due { store.ledgers.names() } else { Vec::new() };
        namespaces.extend(names.iter().map(|name| (name.as_str(), ())));
        let mut failed: BTreeSet<String> = BTreeSet::new();
        for namespace in namespaces.keys() {
            let Err(error) = write(&ledgers, &store, namespace, &runs).await else { continue };
            // Deleted, or outpaced by other writers: retried in the next round.
            if !error.is_conflict() && !error.is_not_found() {
                tracing::warn!(namespace, "cannot record failure streaks: {error}; retrying");
            }
            failed.insert((*namespace).to_owned());
        }
        unrecorded.retain(|job| failed.contains(&job.namespace));
        unrecorded.drain(..unrecorded.len().saturating_sub(MAX_UNRECORDED));
        let pause = if failed.is_empty() { FULL_INTERVAL } else { RETRY_PAUSE };
        tokio::time::sleep(MIN_INTERVAL).await;
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether the outcome of a finished Job is recorded, or has no effect, so that the Job may be deleted.
pub(crate) fn is_recorded(store: &Store, job: &JobSnapshot, now: Timestamp) -> bool {
    let Some((group, policies)) = group(store, job) else { return true };
    let rules = rules(&policies);
    let (Some(finished), Some(ledger)) = (&job.finished, store.ledgers.get(&job.namespace)) else {
        return true;
    };
    let run = FailureStreak { ended: finished.at, ..FailureStreak::default() };
    if rules.is_empty() || run.expires_at(&rules) < now || !failure_streak::was_created_in(job, &group) {
        return true;
    }
    let streak = ledger.streaks.get(&failure_streak::group_key(&group));
    match finished.outcome {
        Outcome::Failed => streak.is_some_and(|streak| streak.includes(job)),
        Outcome::Completed => streak.is_none_or(|streak| streak.failures == 0 || streak.includes(job)),
    }
}

/// The backoff that a queued Job's group is in, if any.
pub(crate) fn wait_of(store: &Store, job: &JobSnapshot, now: Timestamp) -> Option<BackoffWait> {
    let (group, policies) = group(store, job)?;
    let rules = rules(&policies);
    if rules.is_empty() {
        return None;
    }
    let ledger = store.ledgers.get(&job.namespace);
    let before = ledger.as_ref().and_then(|ledger| ledger.streaks.get(&failure_streak::group_key(&group)));
    let runs = store.group(&(job.namespace.clone(), group.clone()));
    let streak = failure_streak::record_runs(
        before,
        &group,
        runs.iter().map(AsRef::as_ref),
        &rules.iter().collect::<Vec<_>>(),
    )?;
    let until = |policy: &Arc<Policy>| {
        let until =
            streak.next_attempt_at(policy.spec.failure_backoff.as_ref()?).filter(|until| now < *until)?;
        Some((until, policy.reference.clone()))
    };
    let (until, policy) = policies.iter().filter_map(until).max()?;
    Some(BackoffWait {
        until,
        policy,
        group: group.value,
        failures: streak.failures,
        last_failed: streak.job,
    })
}

/// The group of a Job and its policies, where one of them has a failure backoff.
fn group(store: &Store, job: &JobSnapshot) -> Option<(GroupId, Vec<Arc<Policy>>)> {
    let policies = store.matching(job)?;
    policies.iter().find(|policy| policy.spec.failure_backoff.is_some())?;
    let group = group_of_job(&policies.iter().collect::<Vec<_>>(), job)?;
    Some((group, policies))
}

fn rules(policies: &[Arc<Policy>]) -> Vec<FailureBackoff> {
    policies.iter().filter_map(|policy| policy.spec.failure_backoff.clone()).collect()
}

fn collect(store: &Store, jobs: impl Iterator<Item = Arc<JobSnapshot>>) -> GroupRuns {
    let mut runs = GroupRuns::new();
    for job in jobs.filter(|job| job.finished.is_some()) {
        let Some((group, policies)) = group(store, &job) else { continue };
        let key = (job.namespace.clone(), group);
        let known = runs.entry(key.clone()).or_insert_with(|| {
            let finished = store.group(&key).into_iter().filter(|job| job.finished.is_some());
            (finished.collect(), rules(&policies))
        });
        if known.0.iter().all(|run| run.uid != job.uid) {
            known.0.push(job);
        }
    }
    runs
}

/// The changes to a ledger: new streaks, and none for those that have expired.
fn changes(
    store: &Store,
    namespace: &str,
    ledger: &Ledger,
    runs: &GroupRuns,
    now: Timestamp,
) -> BTreeMap<String, Option<FailureStreak>> {
    let is_running = |key: &GroupKey| store.group(key).iter().any(|job| job.finished.is_none());
    let mut after = ledger.streaks.clone();
    for (key, (jobs, rules)) in runs.iter().filter(|((at, _), _)| at == namespace) {
        let name = failure_streak::group_key(&key.1);
        let rules_ref: Vec<&FailureBackoff> = rules.iter().collect();
        let streak =
            failure_streak::record_runs(after.get(&name), &key.1, jobs.iter().map(AsRef::as_ref), &rules_ref);
        match streak.filter(|streak| now <= streak.expires_at(rules) || is_running(key)) {
            Some(streak) => after.insert(name, streak),
            None => after.remove(&name),
        };
    }
    let policies = store.policies();
    let here: Vec<FailureBackoff> = policies
        .iter()
        .filter(|policy| policy.enforced())
        .filter(|policy| policy.reference.namespace.as_deref().is_none_or(|own| own == namespace))
        .filter_map(|policy| policy.spec.failure_backoff.clone())
        .collect();
    after.retain(|name, streak| {
        let group = failure_streak::parse_group_key(name).map(|group| (namespace.to_owned(), group));
        now <= streak.expires_at(&here) || (!here.is_empty() && group.is_some_and(|key| is_running(&key)))
    });
    while after.len() > failure_streak::MAX_GROUPS {
        let oldest = after.iter().min_by_key(|(_, streak)| streak.ended).map(|(name, _)| name.clone());
        oldest.and_then(|name| after.remove(&name));
    }
    let gone =
        ledger.streaks.keys().filter(|name| !after.contains_key(*name)).map(|name| (name.clone(), None));
    let mut changed: BTreeMap<String, Option<FailureStreak>> = gone.collect();
    let new = after.into_iter().filter(|(name, streak)| ledger.streaks.get(name) != Some(streak));
    changed.extend(new.map(|(name, streak)| (name, Some(streak))));
    changed
}

/// Applies the changes to the version that they were computed for. This is a merge patch, because an apply would create
/// a missing ledger; only the webhook creates ledgers, as it knows whether one was lost.
async fn write(
    ledgers: &Api<JobLedger>,
    store: &Store,
    namespace: &str,
    runs: &GroupRuns,
) -> Result<(), ApiError> {
    // Without a ledger, streaks follow from the existing Jobs; the webhook creates it with the next Job.
    let Some(mut ledger) = store.ledgers.get(namespace) else { return Ok(()) };
    let params = PatchParams { field_manager: Some(PROGRAM.to_owned()), ..PatchParams::default() };
    let mut attempts = 0;
    loop {
        let changes = changes(store, namespace, &ledger, runs, Timestamp::now());
        if changes.is_empty() {
            return Ok(());
        }
        let entries: Map<String, Value> =
            changes.into_iter().map(|(name, streak)| (name, json!(streak))).collect();
        let patch = Patch::Merge(json!({
            "metadata": {"uid": ledger.uid, "resourceVersion": ledger.version},
            "spec": {BACKOFF: entries},
        }));
        attempts += 1;
        match call(&format!("write jobledger {namespace}"), ledgers.patch(namespace, &params, &patch)).await {
            Ok(written) => {
                store.ledgers.put(&written);
                return Ok(());
            }
            Err(error) if error.is_conflict() && attempts < MAX_ATTEMPTS => {
                let current = call(&format!("get jobledger {namespace}"), ledgers.get(namespace)).await?;
                ledger = Arc::new(Ledger::from(&current));
            }
            Err(error) => return Err(error),
        }
    }
}
