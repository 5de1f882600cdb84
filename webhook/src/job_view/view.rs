//! The lean view of a Job.
//!
//! Of the template's containers, only names, requests and limits are built in memory, whatever their number. Deep nesting
//! is safe: `serde_json` skips unknown values without recursion.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use job_handler_shared::{
    job::{
        scope::without_group_label,
        snapshot::{Finished, JobSnapshot, Outcome, Owner},
    },
    keys,
    policy::reference::Labels,
};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use crate::job_view::containers::{ContainerView, RawPodSpec};

/// A Job, and what a JSON Patch has to know about the raw object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobView {
    /// The Job without its template.
    pub snapshot: JobSnapshot,
    /// `metadata.generateName`, from which the apiserver makes the name.
    pub(crate) generate_name: String,
    /// `metadata.labels` exists, so that a patch can add single keys to it.
    pub(crate) has_labels: bool,
    /// `metadata.annotations` exists.
    pub(crate) has_annotations: bool,
    /// `spec.backoffLimitPerIndex` is set.
    pub(crate) backoff_limit_per_index: bool,
    /// The pod template.
    pub(crate) template: TemplateView,
}

/// A pod template, and what a JSON Patch has to know about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TemplateView {
    /// `spec.template` exists.
    pub exists: bool,
    /// `spec.template.metadata` exists.
    pub(crate) has_metadata: bool,
    /// `spec.template.metadata.labels` exists.
    pub(crate) has_labels: bool,
    /// `spec.template.metadata.labels`.
    pub labels: Labels,
    /// `spec.template.spec.initContainers` and `containers`; empty if the pod spec has pod-level resources.
    pub containers: Vec<ContainerView>,
}

impl JobView {
    /// Clears the status: the apiserver drops a status that a client sends with a create.
    pub(crate) fn without_status(mut self) -> Self {
        let job = &mut self.snapshot;
        (job.started, job.finished, job.finishing) = (None, None, false);
        (job.active_pods, job.terminating_pods, job.succeeded_pods, job.failed_pods) = (0, 0, 0, 0);
        self
    }

    /// The value of an annotation with the prefix `job-handler/`.
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.snapshot.annotations.get(key).map(String::as_str)
    }
}

/// The Job after an update, if the update can make it take a slot that it did not take before.
pub(crate) fn newly_active(new: &JobView, old: &JobView) -> Option<JobSnapshot> {
    let before = &old.snapshot;
    let mut after = new.snapshot.clone();
    // The stored status says which pods run; an update of the Job cannot change it.
    after.finished.clone_from(&before.finished);
    (after.active_pods, after.terminating_pods) = (before.active_pods, before.terminating_pods);
    let unsuspended = before.suspended && !after.suspended;
    let changes_scope = without_group_label(&before.labels) != without_group_label(&after.labels)
        || before.owner != after.owner;
    (after.is_active() && (unsuspended || changes_scope)).then_some(after)
}

impl<'de> Deserialize<'de> for JobView {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RawJob::deserialize(deserializer).map(Self::from)
    }
}

#[derive(Deserialize)]
struct RawJob {
    metadata: Option<RawMetadata>,
    spec: Option<RawSpec>,
    status: Option<RawStatus>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawMetadata {
    namespace: Option<String>,
    name: Option<String>,
    generate_name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Timestamp>,
    deletion_timestamp: Option<Timestamp>,
    labels: Option<Labels>,
    annotations: Option<OwnAnnotations>,
    owner_references: Option<Vec<RawOwnerReference>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawOwnerReference {
    #[serde(default)]
    controller: Option<bool>,
    api_version: String,
    kind: String,
    name: String,
    uid: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawSpec {
    suspend: Option<bool>,
    managed_by: Option<String>,
    ttl_seconds_after_finished: Option<i32>,
    active_deadline_seconds: Option<i64>,
    backoff_limit: Option<i32>,
    backoff_limit_per_index: Option<i32>,
    template: Option<RawTemplate>,
}

#[derive(Deserialize)]
struct RawTemplate {
    metadata: Option<RawTemplateMetadata>,
    spec: Option<RawPodSpec>,
}

#[derive(Deserialize)]
struct RawTemplateMetadata {
    labels: Option<Labels>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawStatus {
    start_time: Option<Timestamp>,
    active: Option<i32>,
    terminating: Option<i32>,
    succeeded: Option<i32>,
    failed: Option<i32>,
    conditions: Option<Vec<RawCondition>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawCondition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    reason: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    last_transition_time: Option<Timestamp>,
}

/// Annotations with the prefix `job-handler/`. All others are skipped: `kubectl apply` stores a full manifest in one.
#[derive(Default)]
struct OwnAnnotations(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for OwnAnnotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OwnKeys;
        impl<'de> Visitor<'de> for OwnKeys {
            type Value = OwnAnnotations;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of annotations")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OwnAnnotations, A::Error> {
                let mut ours = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key.starts_with("job-handler/") {
                        ours.insert(key, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(OwnAnnotations(ours))
            }
        }
        deserializer.deserialize_map(OwnKeys)
    }
}

impl From<RawJob> for JobView {
    fn from(raw: RawJob) -> Self {
        let (meta, spec, status) =
            (raw.metadata.unwrap_or_default(), raw.spec.unwrap_or_default(), raw.status.unwrap_or_default());
        let template = template(spec.template);
        let (has_labels, has_annotations) = (meta.labels.is_some(), meta.annotations.is_some());
        let conditions = status.conditions.unwrap_or_default();
        let finishing =
            ["SuccessCriteriaMet", "FailureTarget"].iter().any(|kind| is_true(&conditions, kind).is_some());
        let snapshot = JobSnapshot {
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
            resource_version: meta.resource_version.unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            created: meta.creation_timestamp.unwrap_or_default(),
            deleting_since: meta.deletion_timestamp,
            labels: meta.labels.unwrap_or_default(),
            annotations: meta.annotations.unwrap_or_default().0,
            owner: meta
                .owner_references
                .into_iter()
                .flatten()
                .find(|reference| reference.controller == Some(true))
                .map(|o| Owner { api_version: o.api_version, kind: o.kind, name: o.name, uid: o.uid }),
            suspended: spec.suspend.unwrap_or_default(),
            managed_by: spec.managed_by.filter(|manager| manager != keys::JOB_CONTROLLER),
            ttl: spec.ttl_seconds_after_finished,
            deadline: spec.active_deadline_seconds,
            backoff_limit: spec.backoff_limit,
            started: status.start_time,
            active_pods: status.active.unwrap_or_default(),
            terminating_pods: status.terminating.unwrap_or_default(),
            succeeded_pods: status.succeeded.unwrap_or_default(),
            failed_pods: status.failed.unwrap_or_default(),
            finished: finished(&conditions),
            finishing,
        };
        Self {
            generate_name: meta.generate_name.unwrap_or_default(),
            has_labels,
            has_annotations,
            backoff_limit_per_index: spec.backoff_limit_per_index.is_some(),
            template,
            snapshot,
        }
    }
}

fn template(template: Option<RawTemplate>) -> TemplateView {
    let Some(template) = template else { return TemplateView::default() };
    let has_metadata = template.metadata.is_some();
    let containers = template.spec.map(RawPodSpec::into_containers).unwrap_or_default();
    let labels = template.metadata.and_then(|metadata| metadata.labels);
    TemplateView {
        exists: true,
        has_metadata,
        has_labels: labels.is_some(),
        labels: labels.unwrap_or_default(),
        containers,
    }
}

fn is_true<'a>(conditions: &'a [RawCondition], kind: &str) -> Option<&'a RawCondition> {
    conditions.iter().find(|condition| condition.kind == kind && condition.status == "True")
}

fn finished(conditions: &[RawCondition]) -> Option<Finished> {
    let (condition, outcome) = [("Complete", Outcome::Completed), ("Failed", Outcome::Failed)]
        .into_iter()
        .find_map(|(kind, outcome)| is_true(conditions, kind).map(|condition| (condition, outcome)))?;
    Some(Finished {
        outcome,
        reason: condition.reason.clone().unwrap_or_default(),
        message: condition.message.clone().unwrap_or_default(),
        at: condition.last_transition_time.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::batch::v1::Job;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_view_agrees_with_the_typed_job_on_every_field() {
        let job = json!({
            "apiVersion": "batch/v1", "kind": "Job",
            "metadata": {
                "name": "a", "namespace": "ci", "uid": "u", "resourceVersion": "7", "generation": 2,
                "creationTimestamp": "2026-01-01T00:00:00Z", "deletionTimestamp": "2026-01-01T00:09:00Z",
                "labels": {"app": "build"},
                "annotations": {"job-handler/status": "failed", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "1"},
                    {"apiVersion": "batch/v1", "kind": "CronJob", "name": "c", "uid": "2", "controller": true,
                        "blockOwnerDeletion": true}],
            },
            "spec": {
                "suspend": true, "managedBy": "kueue.x-k8s.io/multikueue", "ttlSecondsAfterFinished": 9,
                "activeDeadlineSeconds": 8, "backoffLimit": 7,
                "template": {"metadata": {"labels": {"app": "build"}}, "spec": {"containers": [], "restartPolicy": "Never"}},
            },
            "status": {
                "startTime": "2026-01-01T00:00:01Z", "active": 1, "terminating": 2, "succeeded": 3, "failed": 4,
                "conditions": [
                    {"type": "FailureTarget", "status": "True"},
                    {"type": "Complete", "status": "False"},
                    {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "m",
                        "lastTransitionTime": "2026-01-01T00:00:02Z"}],
            },
        });
        let view: JobView = serde_json::from_value(job.clone()).unwrap();
        let typed: Job = serde_json::from_value(job).unwrap();
        assert_eq!(view.snapshot, JobSnapshot::from(&typed));
        assert!(view.has_labels && view.has_annotations && view.template.has_labels);
    }

    #[test]
    fn null_means_absent() {
        let view: JobView = serde_json::from_value(json!({
            "metadata": {"creationTimestamp": null, "labels": null, "annotations": null},
            "spec": {"suspend": null, "template": {"metadata": {"creationTimestamp": null}}}, "status": null,
        }))
        .unwrap();
        assert!(!view.has_labels && !view.has_annotations);
        assert_eq!(
            view.template,
            TemplateView { exists: true, has_metadata: true, ..TemplateView::default() }
        );
        let empty: JobView = serde_json::from_str("{}").unwrap();
        assert_eq!(empty, JobView::default());
    }

    #[test]
    fn a_deep_template_is_skipped_without_recursion() {
        let deep = format!("{}{}", "{\"a\":".repeat(100_000), "1".to_owned() + &"}".repeat(100_000));
        let text = format!(r#"{{"metadata":{{"name":"a"}},"spec":{{"template":{{"spec":{deep}}}}}}}"#);
        let view: JobView = serde_json::from_str(&text).unwrap();
        assert_eq!(view.snapshot.name, "a");
    }
}
