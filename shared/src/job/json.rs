//! Reads a Job without its template.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::batch::v1::{Job, JobSpec, JobStatus},
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time},
};
use serde::Deserialize;

use crate::job::snapshot::JobSnapshot;

/// What is read of a Job's JSON. A template of one megabyte has room for thousands of containers, which would take a hundred
/// as objects; so would managed fields.
#[derive(Deserialize)]
struct JobJson {
    #[serde(default)]
    metadata: JobMetaJson,
    spec: Option<JobSpecJson>,
    status: Option<JobStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct JobMetaJson {
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct JobSpecJson {
    suspend: Option<bool>,
    managed_by: Option<String>,
    ttl_seconds_after_finished: Option<i32>,
    active_deadline_seconds: Option<i64>,
    backoff_limit: Option<i32>,
    manual_selector: Option<bool>,
    selector: Option<LabelSelector>,
}

impl JobSnapshot {
    /// Reads a Job. Its template is skipped.
    ///
    /// # Errors
    /// If the text is not the JSON of a Job.
    pub fn from_json(json: &[u8]) -> serde_json::Result<Self> {
        let JobJson { metadata, spec, status } = serde_json::from_slice(json)?;
        let metadata = ObjectMeta {
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            generation: metadata.generation,
            creation_timestamp: metadata.creation_timestamp,
            deletion_timestamp: metadata.deletion_timestamp,
            labels: metadata.labels,
            annotations: metadata.annotations,
            owner_references: metadata.owner_references,
            ..ObjectMeta::default()
        };
        let spec = spec.map(|spec| JobSpec {
            suspend: spec.suspend,
            managed_by: spec.managed_by,
            ttl_seconds_after_finished: spec.ttl_seconds_after_finished,
            active_deadline_seconds: spec.active_deadline_seconds,
            backoff_limit: spec.backoff_limit,
            manual_selector: spec.manual_selector,
            selector: spec.selector,
            ..JobSpec::default()
        });
        Ok(Self::from(&Job { metadata, spec, status }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_read_of_json_is_what_the_typed_job_says() {
        let json = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {
                "name": "a", "namespace": "ci", "uid": "u", "resourceVersion": "7", "generation": 2,
                "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-01T00:09:00Z",
                "labels": {"app": "build"}, "annotations": {"job-handler/status": "failed", "other": "x"},
                "ownerReferences": [
                    {"apiVersion": "batch/v1", "kind": "CronJob", "name": "c", "uid": "2", "controller": true}],
                "managedFields": [{"manager": "m", "operation": "Update", "fieldsV1": {"f:spec": {}}}],
            },
            "spec": {
                "suspend": true, "managedBy": "kueue.x-k8s.io/multikueue", "ttlSecondsAfterFinished": 9,
                "activeDeadlineSeconds": 8, "backoffLimit": 7, "parallelism": 6,
                "manualSelector": true, "selector": {"matchLabels": {"app": "manual"}, "matchExpressions": [
                    {"key": "tier", "operator": "In", "values": ["a", "b"]}]},
                "template": {"spec": {"containers": [{"name": "main"}]}},
            },
            "status": {
                "startTime": "2026-01-01T00:00:01Z", "active": 1, "terminating": 2, "succeeded": 3, "failed": 4,
                "conditions": [{"type": "Failed", "status": "True", "reason": "R", "message": "m",
                    "lastTransitionTime": "2026-01-01T00:00:02Z"}],
            },
        });
        let read = |json: &serde_json::Value| JobSnapshot::from_json(json.to_string().as_bytes());
        let typed: Job = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(read(&json).unwrap(), JobSnapshot::from(&typed));
        let selector = |json: &serde_json::Value| read(json).unwrap().pod_selector;
        assert_eq!(selector(&json).as_deref(), Some("app=manual,tier in (a,b)"));
        let mut usual = json.clone();
        usual["spec"]["manualSelector"] = false.into();
        assert_eq!(selector(&usual), None);
        let mut long = json.clone();
        long["spec"]["selector"]["matchLabels"]["app"] = "v".repeat(1024).into();
        assert_eq!(selector(&long).as_deref(), Some(""));
        assert_eq!(read(&json!({"metadata": {"labels": null}})).unwrap(), JobSnapshot::default());
        // These are of no type that the apiserver knows: nothing reads them.
        let mut skipped = json.clone();
        skipped["spec"]["template"] = json!({"spec": {"containers": [{"name": 1}]}});
        skipped["metadata"]["managedFields"] = 1.into();
        assert_eq!(read(&skipped).unwrap(), JobSnapshot::from(&typed));
        assert!(read(&json!("x")).is_err());
    }
}
