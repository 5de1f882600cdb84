//! Jobs in an in-memory apiserver, and a sink whose watch caches show them. The unit tests include this file too.

use std::sync::Arc;

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    keys,
    policy::{parsed::Policy, status::PolicyStatus},
    process::telemetry::Metrics,
    result::{metadata, storage_kind::StorageKind},
    testing::{apiserver::Apiserver, policies::job_policy},
};
use job_handler_sink::{
    harvest::{collector::Collector, pod_tracker::PodTracker},
    metrics::SinkMetrics,
    model::{policy_entry::PolicyEntry, result_ref::ResultRef, stored_result::StoredResult},
    notify::recorder::Recorder,
    object_store::FullLogStore,
    observe::{key::Key, store::Store},
    reconcile::{job::JobReconciler, log_retry::LogRetries},
    retention::gc::GarbageCollector,
};
use k8s_openapi::api::batch::v1::Job;
use kube::{Client, core::ObjectMeta};
use serde_json::{Value, json};

/// The Job's uid.
pub const UID: &str = "0123456789-job";

/// A cluster with one failed Job, `ci/build`, and its pod with this log.
pub fn cluster(log: &[u8]) -> Apiserver {
    let apiserver = Apiserver::default();
    apiserver.put("jobs", json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "build", "namespace": "ci", "uid": UID, "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {keys::TTL: "60"}},
        "spec": {"ttlSecondsAfterFinished": 604_800, "template": {"spec": {"containers": []}}},
        "status": {"failed": 1, "startTime": "2026-01-01T00:00:00Z", "conditions": [{"type": "Failed", "status": "True",
            "reason": "BackoffLimitExceeded", "message": "m", "lastTransitionTime": "2026-01-01T00:00:09Z"}]},
    }));
    apiserver.put("pods", json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "build-x", "namespace": "ci", "ownerReferences": [
            {"apiVersion": "batch/v1", "kind": "Job", "name": "build", "uid": UID, "controller": true}]},
        "spec": {"containers": [{"name": "main", "image": "busybox"}]},
        "status": {"phase": "Failed", "containerStatuses": [{"name": "main", "image": "busybox", "imageID": "",
            "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 3}}}]},
    }));
    apiserver.put_log("build-x", "main", log);
    apiserver
}

/// A Job that has completed.
pub fn completed_job(namespace: &str, name: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"template": {"spec": {"containers": []}}},
        "status": {"succeeded": 1, "startTime": "2026-01-01T00:00:00Z", "conditions": [{"type": "Complete",
            "status": "True", "lastTransitionTime": "2026-01-01T00:00:09Z"}]},
    })
}

/// A sink that has just started: its watch caches show the cluster as it is, and one policy.
pub fn process(apiserver: &Apiserver, policy: Value) -> JobReconciler {
    let store = store();
    store.put_namespace("ci", Default::default());
    set_policy(&store, 1, policy);
    for job in apiserver.all("jobs") {
        let job: Job = serde_json::from_value(job).unwrap();
        store.put_job(JobSnapshot::from(&job));
    }
    for kind in StorageKind::readable(true) {
        for map in apiserver.all(&format!("{}s", kind.resource())) {
            if let Some((uid, result, _)) = result_in(&store, *kind, &map) {
                store.put_result(&uid, result);
            }
        }
    }
    reconciler(apiserver.client(), store)
}

/// A store with the key of the seal.
pub fn store() -> Store {
    let store = Store::default();
    store.seal.set_key(&[1; 32]);
    store
}

/// What the watch finds in an object: the uid of a Job, the reference to its result, and the metadata.
fn result_in(store: &Store, kind: StorageKind, object: &Value) -> Option<(String, ResultRef, ObjectMeta)> {
    let metadata: ObjectMeta = serde_json::from_value(object["metadata"].clone()).unwrap();
    let labels = metadata.labels.clone().unwrap_or_default();
    let uid = labels.get(keys::JOB_UID).filter(|_| labels.contains_key(keys::CREATED))?.clone();
    let sealed = store.seal.holds(&metadata);
    let result = ResultRef {
        sealed,
        pending: sealed && labels.contains_key(metadata::PENDING),
        ..ResultRef::at(kind, metadata.namespace.as_deref()?, metadata.name.as_deref()?)
    };
    Some((uid, result, metadata))
}

/// A reconciler with this store.
pub fn reconciler(client: Client, store: Store) -> JobReconciler {
    JobReconciler {
        client: client.clone(),
        queue: Key::queue(&store),
        store,
        collector: Collector::new(client.clone()),
        pod_tracker: PodTracker::default(),
        log_retries: LogRetries::default(),
        recorder: Recorder::new(client, "sink-0"),
        metrics: SinkMetrics::new(&Metrics::default()),
    }
}

/// A garbage collector that knows the results that the apiserver has.
pub fn garbage_collector(
    apiserver: &Apiserver,
    reconciler: &JobReconciler,
    kind: StorageKind,
    objects: Option<FullLogStore>,
) -> GarbageCollector {
    for object in apiserver.all(&format!("{}s", kind.resource())) {
        if let Some((uid, result, metadata)) = result_in(&reconciler.store, kind, &object) {
            reconciler.store.put_stored(StoredResult::of(&uid, &result, &metadata), result);
        }
    }
    GarbageCollector {
        client: apiserver.client(),
        store: reconciler.store.clone(),
        metrics: reconciler.metrics.clone(),
        budget: None,
        objects,
    }
}

/// Puts a policy, or a new generation of it, into the watch cache.
pub fn set_policy(store: &Store, generation: i64, spec: Value) {
    let metadata = json!({"name": "p", "namespace": "ci", "uid": "p", "generation": generation});
    store.put_policy(policy_entry(generation, job_policy(metadata, spec)));
}

/// A policy of this generation, without a status.
pub fn policy_entry(generation: i64, policy: Arc<Policy>) -> PolicyEntry {
    let reference = policy.reference.clone();
    PolicyEntry { reference, generation, policy: Ok(policy), status: PolicyStatus::default() }
}

/// Incompressible, so that it needs shards.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
