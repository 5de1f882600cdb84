//! Writes the policies' statuses: the leader all of each, followers the last refusal that only they were told of; only on
//! change, at most once a second each.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use job_handler_shared::{
    job::{
        scope::{group_of_job, without_group_label},
        snapshot::JobSnapshot,
    },
    kube::error::{ApiError, call},
    policy::{
        parsed::Policy,
        spec::{ClusterJobPolicy, JobPolicy},
        status::PolicyStatus,
    },
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::watch;

use crate::{
    enforce::webhook_entries::{self, Kept},
    metrics::SinkMetrics,
    model::{policy_entry::PolicyEntry, text::whole_seconds},
    observe::store::Store,
    runtime::work_queue::Queue,
    status::{
        conditions::{self, Selected, Situation},
        summary,
    },
};

/// Least time between two writes of one status.
const EVERY: Duration = Duration::from_secs(1);

/// Writes the statuses for ever.
pub async fn keep<K: Clone + Eq + std::hash::Hash>(
    client: Client,
    store: Store,
    own_namespace: Arc<str>,
    entries: watch::Receiver<Kept>,
    metrics: SinkMetrics,
    queue: Queue<K>,
) {
    let mut changes = store.changes();
    let mut entries = entries;
    loop {
        let jobs = store.jobs();
        let active: HashSet<&str> =
            jobs.iter().filter(|job| job.is_active()).map(|job| job.uid.as_str()).collect();
        let results = store.results();
        let asked = |job: &JobSnapshot| store.effective(job).and_then(|said| said.results.clone());
        metrics.set_census(&summary::take(&jobs, &results, &store.enforced(), asked, Timestamp::now()));
        metrics.set_queue(queue.len());
        let sinks = store.known_sinks();
        let mut queued = HashMap::new();
        for entry in store.entries() {
            let policy = entry.policy.as_ref().ok();
            let selected: Vec<Selected> =
                policy.map_or_else(Vec::new, |policy| selected(&store, policy, &jobs));
            for limit in policy.filter(|policy| policy.enforced()).into_iter().flat_map(|p| &p.spec.limits) {
                let key = (entry.reference.to_string(), limit.name.clone());
                queued.insert(key, conditions::queued(limit, &selected));
            }
            let wanted = {
                let kept = entries.borrow_and_update();
                let situation = Situation {
                    jobs: &selected,
                    replicas: &store.replicas(),
                    entries: &kept,
                    pending: &store.ledgers.pending(&entry.reference.uid, |uid| active.contains(uid)),
                    refusal: store.refusal(&entry.reference.uid),
                    grouped: policy.is_none_or(|policy| is_grouped(&store, policy)),
                    sinks: &sinks,
                    results: summary::of_policy(&results, &entry.reference.uid),
                    no_secrets: store.secrets.why_not(),
                    excluded: policy
                        .is_some_and(|policy| webhook_entries::is_excluded(policy, &own_namespace)),
                    now: whole_seconds(Timestamp::now()),
                    clock: Instant::now(),
                };
                conditions::of(&entry, &situation)
            };
            if wanted == entry.status {
                continue;
            }
            match write(&client, &entry, &wanted).await {
                // The watch brings it back; until then this is what it says.
                Ok(()) => store.put_status(&entry.reference.uid, entry.generation, wanted),
                Err(error) if error.is_not_found() => {}
                Err(error) => tracing::warn!(policy = %entry.reference, "status: {error}; trying again"),
            }
        }
        metrics.set_limits_queued(queued);
        tokio::time::sleep(EVERY).await;
        tokio::select! {
            _ = changes.changed() => {}
            _ = entries.changed() => {}
            // Leases run out without anything changing.
            () = tokio::time::sleep(EVERY.saturating_mul(4)) => {}
        }
    }
}

/// A follower writes the last refusals that only it was told of; the leader's status takes them up. For ever.
pub async fn tell_refusals(client: Client, store: Store, leads: watch::Receiver<bool>) {
    let mut changes = store.changes();
    loop {
        // A store that is gone changes no more.
        if changes.changed().await.is_err() {
            return;
        }
        for entry in store.entries().into_iter().filter(|_| !*leads.borrow()) {
            let Some(ours) = store.refusal(&entry.reference.uid) else { continue };
            if entry.status.last_refusal.as_ref().is_some_and(|known| known.time.0 >= ours.time.0) {
                continue;
            }
            let status = json!({"lastRefusal": ours});
            match patch(&client, &entry, status).await {
                Ok(()) => {
                    let status = PolicyStatus { last_refusal: Some(ours), ..entry.status };
                    store.put_status(&entry.reference.uid, entry.generation, status);
                }
                Err(error) => {
                    tracing::warn!(policy = %entry.reference, "last refusal: {error}; trying again");
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Whether a group is named for Jobs of this policy: by itself, or by an enforced one that reaches the same namespaces.
fn is_grouped(store: &Store, policy: &Policy) -> bool {
    let reaches = |other: &Policy| match (&policy.reference.namespace, &other.reference.namespace) {
        (Some(own), Some(others)) => own == others,
        (Some(own), None) => store.namespace(own).is_none_or(|labels| other.selects_namespace(own, &labels)),
        (None, _) => true,
    };
    policy.spec.group.is_some()
        || store
            .policies()
            .iter()
            .any(|other| other.enforced() && other.spec.group.is_some() && reaches(other))
}

fn selected(store: &Store, policy: &Arc<Policy>, jobs: &[Arc<JobSnapshot>]) -> Vec<Selected> {
    let of_policy = |job: &&Arc<JobSnapshot>| {
        job.finished.is_none()
            && policy.reference.namespace.as_ref().is_none_or(|own| *own == job.namespace)
            && store.namespace(&job.namespace).is_some_and(|labels| {
                policy.selects(&job.namespace, &labels, &without_group_label(&job.labels))
            })
    };
    let with_group = |job: &Arc<JobSnapshot>| {
        let mut policies = store.matching(job).unwrap_or_default();
        // One that only warns groups by what it says itself, where nobody else says anything.
        if !policy.enforced() {
            policies.push(policy.clone());
        }
        (job.clone(), group_of_job(&policies.iter().collect::<Vec<_>>(), job))
    };
    jobs.iter().filter(of_policy).map(with_group).collect()
}

async fn write(client: &Client, entry: &PolicyEntry, status: &PolicyStatus) -> Result<(), ApiError> {
    // Absent fields are written as null: a merge patch leaves what it does not name.
    let mut value = json!({"lastRefusal": null, "inForceSince": null, "limits": [], "pendingJobs": null, "queuedJobs": null, "results": null, "runningJobs": null, "usage": null});
    if let (Some(fields), Ok(serde_json::Value::Object(wanted))) =
        (value.as_object_mut(), serde_json::to_value(status))
    {
        fields.extend(wanted);
    }
    patch(client, entry, value).await
}

async fn patch(client: &Client, entry: &PolicyEntry, status: serde_json::Value) -> Result<(), ApiError> {
    let reference = &entry.reference;
    let what = format!("write the status of {reference}");
    // Guarded by uid: a policy deleted and made again is another one.
    let patch = Patch::Merge(json!({"metadata": {"uid": reference.uid}, "status": status}));
    let params = PatchParams::default();
    match &reference.namespace {
        Some(namespace) => {
            let api = Api::<JobPolicy>::namespaced(client.clone(), namespace);
            call(&what, api.patch_status(&reference.name, &params, &patch)).await.map(drop)
        }
        None => {
            let api = Api::<ClusterJobPolicy>::all(client.clone());
            call(&what, api.patch_status(&reference.name, &params, &patch)).await.map(drop)
        }
    }
}
