//! A Job cut down to what both programs need, and the state it is in.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use kube::core::Selector;
use serde::{Deserialize, Serialize};

use crate::{
    job::queued_entry,
    keys,
    names::{OBJECT_NAME_MAX, is_object_name},
    policy::label_keys::LabelKeys,
};

/// A group, a slash and a version: `k8s.io/apiextensions-apiserver` takes groups of 253 characters, versions of 63.
const MAX_API_VERSION: usize = OBJECT_NAME_MAX + 1 + MAX_KIND;
/// Kinds and versions are DNS labels (`ValidateCustomResourceDefinitionNames`).
const MAX_KIND: usize = 63;
/// Longest uid that is believed. The apiserver's own have 36 characters.
pub const MAX_UID: usize = 63;
/// Longest selector of pods that is kept. Its author can fill it up to a megabyte.
const MAX_SELECTOR: usize = 1024;

/// A Job without its template: 50,000 of these fit in memory, 50,000 full Jobs do not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobSnapshot {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp`; one-second resolution.
    pub created: Timestamp,
    /// `metadata.deletionTimestamp`.
    pub deleting_since: Option<Timestamp>,
    /// `metadata.labels`, or those that [`crate::job::trim`] kept.
    pub labels: BTreeMap<String, String>,
    /// The keys of which all labels are there, if others were dropped. `None`: no label was dropped.
    pub kept_labels: Option<Arc<LabelKeys>>,
    /// Labels that policies name were dropped, because they take more than any user needs.
    pub has_cut_labels: bool,
    /// Those annotations of [`keys::ON_JOBS`] that are there.
    pub annotations: BTreeMap<String, String>,
    /// The controlling owner.
    pub owner: Option<Owner>,
    /// `spec.suspend`.
    pub suspended: bool,
    /// Condition `Suspended` is True: the Job controller has stopped the pods.
    pub suspension_seen: bool,
    /// `spec.managedBy`, unless it is Kubernetes' own controller.
    pub managed_by: Option<String>,
    /// `spec.ttlSecondsAfterFinished`, seconds.
    pub ttl: Option<i32>,
    /// `spec.activeDeadlineSeconds`, seconds.
    pub deadline: Option<i64>,
    /// `spec.backoffLimit`.
    pub backoff_limit: Option<i32>,
    /// `spec.selector` of a Job with `spec.manualSelector`, whose pods need not have the labels of the Job controller; empty,
    /// which selects all pods, if it is very long.
    pub pod_selector: Option<String>,
    /// `status.startTime`.
    pub started: Option<Timestamp>,
    /// `status.active`: pods that are pending or running.
    pub active_pods: i32,
    /// `status.terminating`: pods that are being deleted.
    pub terminating_pods: i32,
    /// `status.succeeded`: pods.
    pub succeeded_pods: i32,
    /// `status.failed`: pods.
    pub failed_pods: i32,
    /// Condition `Complete` or `Failed`, if True.
    pub finished: Option<Finished>,
    /// Condition `SuccessCriteriaMet` or `FailureTarget` is True: the outcome is decided, pods are still terminating.
    pub finishing: bool,
}

/// A Job's controlling owner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// API version, such as `batch/v1`.
    pub api_version: String,
    /// Kind, such as `CronJob`.
    pub kind: String,
    /// Name; the namespace is the Job's.
    pub name: String,
    /// `metadata.uid` of the owner.
    pub uid: String,
}

impl Owner {
    /// An owner with these values; none if no object can have them. The apiserver takes any text in an ownerReference; all
    /// four become parts of the group's identity and get into Events.
    pub fn new(api_version: &str, kind: &str, name: &str, uid: &str) -> Option<Self> {
        let is_in_kind = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        // Keys of ledgers put a `=` behind the identity of a group.
        let is_graphic = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b'=');
        let is_possible = (api_version.len() <= MAX_API_VERSION && is_graphic(api_version))
            && (kind.len() <= MAX_KIND && kind.bytes().all(is_in_kind))
            && (uid.len() <= MAX_UID && is_graphic(uid))
            && is_object_name(name);
        is_possible.then(|| Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        })
    }
}

/// How a Job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Whether the Job completed or failed.
    pub outcome: Outcome,
    /// The condition's reason, such as `BackoffLimitExceeded`.
    pub reason: String,
    /// The condition's message.
    pub message: String,
    /// `lastTransitionTime` of the condition.
    pub at: Timestamp,
}

/// Outcome of a finished Job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Condition `Complete`.
    Completed,
    /// Condition `Failed`.
    Failed,
}

impl Outcome {
    /// `completed` or `failed`, as in labels and results.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => keys::STATUS_COMPLETED,
            Self::Failed => keys::STATUS_FAILED,
        }
    }
}

/// State of a Job with regard to limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobState {
    /// Takes a slot.
    Active,
    /// Suspended, with no pod left.
    Suspended,
    /// Complete or Failed.
    Finished,
}

impl JobSnapshot {
    /// State of the Job. A Job in deletion keeps its state until it is gone; a suspended Job is active until its last pod
    /// is gone, and until the Job controller has seen the suspension: with what it read before, it may still be about to create
    /// pods, which the status does not show (`syncJob` in `pkg/controller/job/job_controller.go`). A Job that was created
    /// suspended, and whose spec has not changed since (generation 1), has no such past; and another controller's Jobs may
    /// never get the condition.
    pub fn state(&self) -> JobState {
        if self.finished.is_some() {
            JobState::Finished
        } else if self.suspended && !self.may_have_pods() {
            JobState::Suspended
        } else {
            JobState::Active
        }
    }

    /// Whether a suspended Job may still have pods.
    fn may_have_pods(&self) -> bool {
        let is_seen = self.suspension_seen || self.generation <= 1 || self.managed_by.is_some();
        self.active_pods > 0 || self.terminating_pods > 0 || !is_seen
    }

    /// Whether the Job takes a slot.
    pub fn is_active(&self) -> bool {
        self.state() == JobState::Active
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether another controller manages this Job (Kueue, or `spec.managedBy`): it is never queued, released or repaired.
    pub fn is_managed_by_others(&self) -> bool {
        self.managed_by.is_some() || self.labels.contains_key(keys::KUEUE_QUEUE)
    }

    /// Whether the webhook queued this Job. The annotation `job-handler/stamped` must say so as well: a copied
    /// `job-handler/queued-at` alone must not release a Job.
    pub fn is_queued(&self) -> bool {
        self.suspended
            && self.annotations.contains_key(keys::QUEUED_AT)
            && self.annotations.get(keys::STAMPED).is_some_and(|text| queued_entry::waits_for(text).is_some())
    }
}

/// The selector as a parameter of a list.
fn manual_selector(spec: &JobSpec) -> String {
    let selector = spec.selector.clone().and_then(|selector| Selector::try_from(selector).ok());
    selector
        .map(|selector| selector.to_string())
        .filter(|text| text.len() <= MAX_SELECTOR)
        .unwrap_or_default()
}

impl From<&Job> for JobSnapshot {
    fn from(job: &Job) -> Self {
        let meta = &job.metadata;
        let spec = job.spec.as_ref();
        let status = job.status.as_ref();
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let is_true = |kind: &str| conditions.iter().find(|c| c.type_ == kind && c.status == "True");
        let finished = [("Complete", Outcome::Completed), ("Failed", Outcome::Failed)]
            .into_iter()
            .find_map(|(kind, outcome)| is_true(kind).map(|condition| (condition, outcome)))
            .map(|(condition, outcome)| Finished {
                outcome,
                reason: condition.reason.clone().unwrap_or_default(),
                message: condition.message.clone().unwrap_or_default(),
                at: condition.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
            });
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
            deleting_since: meta.deletion_timestamp.as_ref().map(|t| t.0),
            labels: meta.labels.clone().unwrap_or_default(),
            kept_labels: None,
            has_cut_labels: false,
            annotations: meta
                .annotations
                .iter()
                .flatten()
                .filter(|(key, _)| keys::ON_JOBS.contains(&key.as_str()))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            owner: meta
                .owner_references
                .iter()
                .flatten()
                .find(|o| o.controller == Some(true))
                .and_then(|o| Owner::new(&o.api_version, &o.kind, &o.name, &o.uid)),
            suspended: spec.and_then(|s| s.suspend).unwrap_or_default(),
            suspension_seen: is_true("Suspended").is_some(),
            managed_by: spec.and_then(|s| s.managed_by.clone()).filter(|m| m != keys::JOB_CONTROLLER),
            ttl: spec.and_then(|s| s.ttl_seconds_after_finished),
            deadline: spec.and_then(|s| s.active_deadline_seconds),
            backoff_limit: spec.and_then(|s| s.backoff_limit),
            pod_selector: spec.filter(|spec| spec.manual_selector == Some(true)).map(manual_selector),
            started: status.and_then(|s| s.start_time.as_ref()).map(|t| t.0),
            active_pods: status.and_then(|s| s.active).unwrap_or_default(),
            terminating_pods: status.and_then(|s| s.terminating).unwrap_or_default(),
            succeeded_pods: status.and_then(|s| s.succeeded).unwrap_or_default(),
            failed_pods: status.and_then(|s| s.failed).unwrap_or_default(),
            finished,
            finishing: is_true("SuccessCriteriaMet").or(is_true("FailureTarget")).is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(spec: serde_json::Value, status: serde_json::Value) -> JobSnapshot {
        let job: Job = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "ci", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": spec, "status": status,
        }))
        .unwrap();
        JobSnapshot::from(&job)
    }

    fn condition(kind: &str) -> serde_json::Value {
        json!({"conditions": [{"type": kind, "status": "True", "reason": "R",
            "lastTransitionTime": "2026-01-01T00:01:00Z"}]})
    }

    #[test]
    fn state_depends_on_conditions_suspension_and_pods() {
        let table = [
            (json!({}), json!({}), JobState::Active),
            (json!({"suspend": true}), json!({}), JobState::Suspended),
            (json!({"suspend": true}), json!({"active": 1}), JobState::Active),
            (json!({"suspend": true}), json!({"terminating": 1}), JobState::Active),
            (json!({}), condition("Complete"), JobState::Finished),
            (json!({"suspend": true}), condition("Failed"), JobState::Finished),
            (json!({}), condition("FailureTarget"), JobState::Active),
            (json!({}), condition("SuccessCriteriaMet"), JobState::Active),
        ];
        for (spec, status, expected) in table {
            assert_eq!(job(spec.clone(), status.clone()).state(), expected, "{spec} {status}");
        }
    }

    #[test]
    fn a_suspension_that_nobody_has_seen_frees_no_slot() {
        let suspended = |generation: i64, spec: serde_json::Value, status: serde_json::Value| {
            JobSnapshot { generation, ..job(spec, status) }.state()
        };
        let (yes, nothing) = (json!({"suspend": true}), json!({}));
        assert_eq!(suspended(1, yes.clone(), nothing.clone()), JobState::Suspended, "created so");
        assert_eq!(suspended(2, yes.clone(), nothing.clone()), JobState::Active);
        assert_eq!(suspended(2, yes.clone(), condition("Suspended")), JobState::Suspended);
        let resumed = json!({"conditions": [{"type": "Suspended", "status": "False"}]});
        assert_eq!(suspended(3, yes, resumed), JobState::Active);
        let others = json!({"suspend": true, "managedBy": "kueue.x-k8s.io/multikueue"});
        assert_eq!(suspended(2, others, nothing), JobState::Suspended);
    }

    #[test]
    fn a_false_condition_does_not_finish_a_job() {
        let status = json!({"conditions": [{"type": "Complete", "status": "False"}]});
        assert!(job(json!({}), status).is_active());
    }

    #[test]
    fn an_owner_that_no_object_can_be_is_none() {
        let usual = ["batch/v1", "CronJob", "nightly", "0b1c2d3e-4f50"];
        let owner = |[api_version, kind, name, uid]: [&str; 4]| {
            let job: Job = serde_json::from_value(json!({"metadata": {"ownerReferences": [
                {"apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": true}]}}))
            .unwrap();
            JobSnapshot::from(&job).owner
        };
        assert_eq!(owner(usual).unwrap().name, "nightly");
        for (field, length) in [(0, 318), (1, 64), (2, 254), (3, 64)] {
            let long = "a".repeat(length);
            for wrong in [long.as_str(), "a\u{1b}[2J", "a\u{202e}b", "a\nb", "a b", "ä"] {
                let mut owned = usual;
                owned[field] = wrong;
                assert_eq!(owner(owned), None, "{field} {wrong:?}");
            }
        }
        for name in ["", "A", "a/b", "..", "a?b"] {
            assert_eq!(owner(["v1", "Pod", name, "u"]), None, "{name}");
        }
        assert_eq!(owner(["v1", "a/b", "a", "u"]), None);
    }
}
