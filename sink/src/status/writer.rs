//! Writes the policies' statuses when they change, at most once per second each. The leader writes the full status,
//! followers only the last refusal that they received from their own webhook.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
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
    metrics::SinkMetrics,
    model::{
        entry_state::EntryState,
        policy_entry::{PolicyEntry, is_excluded},
        text::whole_seconds,
    },
    observe::store::Store,
    runtime::work_queue::Queue,
    status::{
        conditions,
        limit_usage::{SelectedJob, queued_jobs},
        policy_status::{StatusInputs, policy_status},
        summary,
    },
};

/// After this time an admitted create has usually stored its Job. Of the ledger's times and this process's clock, only what
/// people read depends.
const USUAL_STORE_TIME: SignedDuration = SignedDuration::from_secs(2);
/// Least time between two writes of one status.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Writes the statuses until it is dropped.
pub(crate) async fn run<K: Clone + Eq + std::hash::Hash>(
    client: Client,
    store: Store,
    own_namespace: Arc<str>,
    entries: watch::Receiver<EntryState>,
    metrics: SinkMetrics,
    queue: Queue<K>,
) -> Infallible {
    let mut changes = store.changes();
    let mut entries = entries;
    loop {
        let jobs = store.jobs();
        let active: HashSet<&str> =
            jobs.iter().filter(|job| job.is_active()).map(|job| job.uid.as_str()).collect();
        let results = store.results();
        let wanted = |job: &JobSnapshot| store.effective(job).and_then(|policy| policy.results.clone());
        let max = store.namespace_bytes_max();
        let now = Timestamp::now();
        let usually_stored = now.checked_sub(USUAL_STORE_TIME).unwrap_or(now);
        metrics.set_summary(&summary::collect(&jobs, &results, &store.enforced(), max, wanted, now));
        metrics.set_queue_length(queue.len());
        let (receivers, replicas) = (store.known_receivers(), store.replicas());
        let unfinished = unfinished_by_namespace(&jobs);
        let requested = summary::by_policy(&results);
        let mut queued = HashMap::new();
        for entry in store.policy_entries().into_iter().filter(PolicyEntry::has_written_status) {
            let policy = entry.policy.as_ref().ok();
            let selected: Vec<SelectedJob> =
                policy.map_or_else(Vec::new, |policy| selected(&store, policy, &unfinished));
            for limit in policy.filter(|policy| policy.enforced()).into_iter().flat_map(|p| &p.spec.limits) {
                let key = (entry.reference.to_string(), limit.name.clone());
                queued.insert(key, queued_jobs(limit, &selected));
            }
            let wanted = {
                let entries = entries.borrow_and_update();
                let inputs = StatusInputs {
                    jobs: &selected,
                    replicas: &replicas,
                    entries: &entries,
                    pending: &store
                        .ledgers
                        .pending(&entry.reference, usually_stored, |uid| active.contains(uid)),
                    held: &store.ledgers.held(&entry.reference, |uid| active.contains(uid)),
                    last_refusal: store.refusal(&entry.reference.uid),
                    has_group: policy.is_none_or(|policy| {
                        conditions::group_limits(&policy.spec).is_empty() || has_group(&store, policy)
                    }),
                    receivers: &receivers,
                    results: requested
                        .get(entry.reference.uid.as_str())
                        .cloned()
                        .unwrap_or_else(summary::no_results),
                    no_secrets: store.secrets.denial(),
                    namespace_bytes_max: max,
                    excluded: is_excluded(&entry.reference, &own_namespace),
                    now: whole_seconds(Timestamp::now()),
                    clock: Instant::now(),
                };
                policy_status(&entry, &inputs)
            };
            if wanted == entry.status {
                continue;
            }
            match write(&client, &entry, &wanted).await {
                // Until the watch delivers it, this is the stored status.
                Ok(()) => store.put_status(&entry.reference.uid, entry.generation, wanted),
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    tracing::warn!(policy = %entry.reference, "cannot write the status: {error}; retrying");
                }
            }
        }
        metrics.set_limits_queued(queued);
        tokio::time::sleep(MIN_INTERVAL).await;
        tokio::select! {
            _ = changes.changed() => {}
            _ = entries.changed() => {}
            // Leases expire without an event.
            () = tokio::time::sleep(MIN_INTERVAL.saturating_mul(4)) => {}
        }
    }
}

/// Writes the last refusals of a follower until it is dropped; the leader keeps them in the status.
pub(crate) async fn write_last_refusals(
    client: Client,
    store: Store,
    leads: watch::Receiver<bool>,
) -> Infallible {
    let mut changes = store.changes();
    loop {
        // The store outlives this loop, which has it.
        _ = changes.changed().await;
        for entry in store.policy_entries().into_iter().filter(|_| !*leads.borrow()) {
            let Some(ours) = store.refusal(&entry.reference.uid).filter(|_| entry.has_written_status())
            else {
                continue;
            };
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
                    tracing::warn!(policy = %entry.reference, "cannot write the last refusal: {error}; retrying");
                }
            }
        }
        tokio::time::sleep(MIN_INTERVAL).await;
    }
}

/// Whether this policy, or an enforced one that applies to the same namespaces, sets `spec.group`.
fn has_group(store: &Store, policy: &Policy) -> bool {
    let overlaps = |other: &Policy| match (&policy.reference.namespace, &other.reference.namespace) {
        (Some(own), Some(others)) => own == others,
        (Some(own), None) => store.namespace(own).is_none_or(|labels| other.selects_namespace(own, &labels)),
        (None, _) => true,
    };
    policy.spec.group.is_some()
        || store
            .policies()
            .iter()
            .any(|other| other.enforced() && other.spec.group.is_some() && overlaps(other))
}

fn unfinished_by_namespace(jobs: &[Arc<JobSnapshot>]) -> BTreeMap<&str, Vec<&Arc<JobSnapshot>>> {
    let mut by_namespace: BTreeMap<&str, Vec<&Arc<JobSnapshot>>> = BTreeMap::new();
    for job in jobs.iter().filter(|job| job.finished.is_none()) {
        by_namespace.entry(&job.namespace).or_default().push(job);
    }
    by_namespace
}

/// The unfinished Jobs that a policy selects.
fn selected(
    store: &Store,
    policy: &Arc<Policy>,
    unfinished: &BTreeMap<&str, Vec<&Arc<JobSnapshot>>>,
) -> Vec<SelectedJob> {
    let with_group = |job: &Arc<JobSnapshot>| {
        let mut policies = store.matching(job).unwrap_or_default();
        // A policy in mode Warn uses its own group where the enforced ones set none.
        if !policy.enforced() {
            policies.push(policy.clone());
        }
        SelectedJob { job: job.clone(), group: group_of_job(&policies.iter().collect::<Vec<_>>(), job) }
    };
    // There may be thousands of policies: each looks at the Jobs of its own namespace only.
    let own = policy.reference.namespace.as_deref();
    let namespaces = own.map_or_else(
        || unfinished.iter().collect::<Vec<_>>(),
        |own| unfinished.get_key_value(own).into_iter().collect(),
    );
    let mut selected = Vec::new();
    for (namespace, jobs) in namespaces {
        let Some(labels) = store.namespace(namespace) else { continue };
        let selects =
            |job: &&&Arc<JobSnapshot>| policy.selects(namespace, &labels, &without_group_label(&job.labels));
        selected.extend(jobs.iter().filter(selects).map(|job| with_group(job)));
    }
    selected
}

async fn write(client: &Client, entry: &PolicyEntry, status: &PolicyStatus) -> Result<(), ApiError> {
    // Absent fields are null: a merge patch keeps fields that it does not mention.
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
    // The uid keeps a policy that was deleted and created anew from getting this status.
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
