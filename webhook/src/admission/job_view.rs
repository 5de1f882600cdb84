//! A Job as it stands in a review or in a LIST, read in one pass: what decisions need is kept, the rest is skipped.
//!
//! Of the template's containers only names, requests and limits are built in memory, however many they are, and however
//! deep they nest (`serde_json` skips unknown values without recursion).

use std::{collections::BTreeMap, fmt};

use crate::stamp::container_resources::{Container, PodSpec};
use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::{Finished, JobSnapshot, Outcome, Owner},
    keys,
    policy::set::Labels,
};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

/// The Job, and what a patch has to know about the raw object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobView {
    /// The Job without its template.
    pub snapshot: JobSnapshot,
    /// `metadata.labels` is there (a patch adds a key, else the whole map).
    pub has_labels: bool,
    /// `metadata.annotations` is there.
    pub has_annotations: bool,
    /// `spec.backoffLimitPerIndex` is set.
    pub backoff_limit_per_index: bool,
    /// What is known of `spec.template`.
    pub template: TemplateView,
}

/// What a patch has to know about the pod template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateView {
    /// `spec.template` is there.
    pub exists: bool,
    /// `spec.template.metadata` is there.
    pub has_metadata: bool,
    /// `spec.template.metadata.labels` is there.
    pub has_labels: bool,
    /// `spec.template.metadata.labels`.
    pub labels: Labels,
    /// `spec.template.spec.initContainers` and `containers`; none where the pod as a whole states resources.
    pub containers: Vec<Container>,
}

impl JobView {
    /// Forgets what a client may have written into `status`: the apiserver drops it on a create.
    pub fn without_status(mut self) -> Self {
        let job = &mut self.snapshot;
        (job.started, job.finished, job.finishing) = (None, None, false);
        (job.active_pods, job.terminating_pods, job.succeeded_pods, job.failed_pods) = (0, 0, 0, 0);
        self
    }

    /// An annotation of ours.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.snapshot.annotations.get(key).map(String::as_str)
    }
}

impl<'de> Deserialize<'de> for JobView {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Raw::deserialize(deserializer).map(Self::from)
    }
}

#[derive(Deserialize)]
struct Raw {
    metadata: Option<Metadata>,
    spec: Option<Spec>,
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Timestamp>,
    deletion_timestamp: Option<Timestamp>,
    labels: Option<Labels>,
    annotations: Option<Annotations>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OwnerReference {
    #[serde(default)]
    controller: Option<bool>,
    api_version: String,
    kind: String,
    name: String,
    uid: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    suspend: Option<bool>,
    managed_by: Option<String>,
    ttl_seconds_after_finished: Option<i32>,
    active_deadline_seconds: Option<i64>,
    backoff_limit: Option<i32>,
    backoff_limit_per_index: Option<i32>,
    template: Option<Template>,
}

#[derive(Deserialize)]
struct Template {
    metadata: Option<TemplateMetadata>,
    spec: Option<PodSpec>,
}

#[derive(Deserialize)]
struct TemplateMetadata {
    labels: Option<Labels>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    start_time: Option<Timestamp>,
    active: Option<i32>,
    terminating: Option<i32>,
    succeeded: Option<i32>,
    failed: Option<i32>,
    conditions: Option<Vec<Condition>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
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

/// Annotations of ours; those of others (`kubectl apply` keeps a whole manifest there) are skipped unread.
#[derive(Default)]
struct Annotations(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ours;
        impl<'de> Visitor<'de> for Ours {
            type Value = Annotations;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of annotations")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
                let mut ours = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key.starts_with("job-handler/") {
                        ours.insert(key, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Annotations(ours))
            }
        }
        deserializer.deserialize_map(Ours)
    }
}

impl From<Raw> for JobView {
    fn from(raw: Raw) -> Self {
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
            has_labels,
            has_annotations,
            backoff_limit_per_index: spec.backoff_limit_per_index.is_some(),
            template,
            snapshot,
        }
    }
}

fn template(template: Option<Template>) -> TemplateView {
    let Some(template) = template else { return TemplateView::default() };
    let has_metadata = template.metadata.is_some();
    let containers = template.spec.map(PodSpec::containers).unwrap_or_default();
    let labels = template.metadata.and_then(|metadata| metadata.labels);
    TemplateView {
        exists: true,
        has_metadata,
        has_labels: labels.is_some(),
        labels: labels.unwrap_or_default(),
        containers,
    }
}

fn is_true<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind && condition.status == "True")
}

fn finished(conditions: &[Condition]) -> Option<Finished> {
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

    /// The lean reader and the typed one agree on every field.
    #[test]
    fn reads_what_the_typed_job_reads() {
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
    fn nulls_are_absent() {
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
