//! One failed Job in an apiserver in memory, and a sink's process that knows what the watches tell of it.

use std::sync::Arc;

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    keys,
    policy::{parsed::Policy, spec::JobPolicy, status::PolicyStatus},
    process::telemetry::Metrics,
    result::{metadata, storage_kind::StorageKind},
};
use job_handler_sink::{
    harvest::{collector::Collector, pod_tracker::PodTracker},
    metrics::SinkMetrics,
    model::{policy_entry::PolicyEntry, result_ref::ResultRef},
    notify::recorder::Recorder,
    observe::{key::Key, store::Store},
    reconcile::job::JobReconciler,
};
use k8s_openapi::api::batch::v1::Job;
use serde_json::{Value, json};

use super::Apiserver;

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

/// A process that has just started: it knows what the watches tell of the cluster as it is.
pub fn process(apiserver: &Apiserver, policy: Value) -> JobReconciler {
    let store = Store::default();
    store.put_namespace("ci", Default::default());
    set_policy(&store, 1, policy);
    for job in apiserver.all("jobs") {
        let job: Job = serde_json::from_value(job).unwrap();
        store.put_job(JobSnapshot::from(&job));
    }
    for kind in StorageKind::readable(true) {
        for map in apiserver.all(&format!("{}s", kind.resource())) {
            let labels = &map["metadata"]["labels"];
            if labels[keys::CREATED] == "true" && labels.get(keys::JOB_UID).is_some() {
                let place = ResultRef {
                    namespace: "ci".into(),
                    name: map["metadata"]["name"].as_str().unwrap().into(),
                    kind: *kind,
                    pending: labels.get(metadata::PENDING).is_some(),
                    ..ResultRef::default()
                };
                store.put_result(labels[keys::JOB_UID].as_str().unwrap(), place);
            }
        }
    }
    let client = apiserver.client();
    JobReconciler {
        client: client.clone(),
        queue: Key::queue(&store),
        store,
        collector: Collector::new(client.clone()),
        pod_tracker: PodTracker::default(),
        recorder: Recorder::new(client, "sink-0"),
        metrics: SinkMetrics::new(&Metrics::default()),
    }
}

/// The watch brings a policy, or a new generation of it.
pub fn set_policy(store: &Store, generation: i64, spec: Value) {
    let mut policy: JobPolicy = serde_json::from_value(json!({"apiVersion": "job-handler.io/v1alpha1",
        "kind": "JobPolicy", "metadata": {"name": "p", "namespace": "ci", "uid": "p"}, "spec": spec}))
    .unwrap();
    policy.metadata.generation = Some(generation);
    let policy = Policy::namespaced(&policy).unwrap();
    store.put_policy(PolicyEntry {
        reference: policy.reference.clone(),
        generation,
        policy: Ok(Arc::new(policy)),
        status: PolicyStatus::default(),
    });
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
