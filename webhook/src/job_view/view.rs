//! The lean view of a Job.
//!
//! Of the template's containers, only names, requests and limits are built in memory, whatever their number. Deep nesting
//! is safe: `serde_json` skips unknown values without recursion.

use job_handler_shared::{
    job::{scope::without_group_label, snapshot::JobSnapshot},
    policy::reference::Labels,
};
use serde::{Deserialize, Deserializer, de::Error as _};

use crate::job_view::{
    containers::ContainerView,
    raw::{RawJob, RawTemplate},
};

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
    /// The Job is being deleted and has finalizer `orphan`: its pods are to run on without it.
    pub(crate) orphans_pods: bool,
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

    /// The value of one of our annotations.
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
    (after.is_active() && (unsuspended || changes_scope(before, &after))).then_some(after)
}

/// Whether an update changes what decides in which scopes a Job counts.
pub(crate) fn changes_scope(before: &JobSnapshot, after: &JobSnapshot) -> bool {
    without_group_label(&before.labels) != without_group_label(&after.labels) || before.owner != after.owner
}

/// Whether an update lets an active Job go while its pods run on. The garbage collector removes finalizer `orphan` once the
/// pods have no owner any more (`k8s.io/kubernetes/pkg/controller/garbagecollector`); a user may do so, too.
pub(crate) fn leaves_orphans(new: &JobView, old: &JobView) -> bool {
    old.orphans_pods && !new.orphans_pods && old.snapshot.is_active()
}

/// Reads all labels, if they are not too many.
impl<'de> Deserialize<'de> for JobView {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        RawJob::<RawTemplate>::deserialize(deserializer)?.into_view().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::{keys, policy::label_keys::NamespaceLabelKeys, testing::policies::namespaced};
    use k8s_openapi::api::batch::v1::Job;
    use serde_json::{Value, json};

    use super::*;
    use crate::job_view::read_trimmed;

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
    fn an_active_job_that_loses_finalizer_orphan_leaves_orphans() {
        let view = |deleted: bool, finalizers: Value, finished: &str| -> JobView {
            let at = deleted.then_some("2026-01-01T00:00:00Z");
            serde_json::from_value(json!({
                "metadata": {"name": "a", "deletionTimestamp": at, "finalizers": finalizers},
                "spec": {"parallelism": 0}, "status": {"conditions": [{"type": "Complete", "status": finished}]},
            }))
            .unwrap()
        };
        let deleted = view(true, json!(["x", "orphan"]), "False");
        for left in [json!(["x"]), json!([]), json!(null)] {
            assert!(leaves_orphans(&view(true, left, "False"), &deleted));
        }
        assert!(!leaves_orphans(&deleted, &deleted), "it stays for now");
        assert!(!leaves_orphans(&view(true, json!([]), "True"), &view(true, json!(["orphan"]), "True")));
        assert!(!leaves_orphans(
            &view(true, json!([]), "False"),
            &view(true, json!(["foregroundDeletion"]), "False")
        ));
        assert!(!leaves_orphans(&view(false, json!([]), "False"), &view(false, json!(["orphan"]), "False")));
        // Without parallelism it runs no pods, and has its slot.
        assert!(deleted.snapshot.is_active());
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

    #[test]
    fn of_a_listed_job_only_the_named_labels_are_read() {
        let policy = namespaced("p", json!({"jobSelector": {"matchLabels": {"app": "x"}}}));
        let keys = NamespaceLabelKeys::new([&*policy]);
        let mut labels: Labels = (0..10_000).map(|n| (format!("l{n}"), String::new())).collect();
        labels.insert("app".to_owned(), "x".to_owned());
        let read_in = |namespace: &str, labels: &Labels| {
            let job = json!({"metadata": {"name": "a", "labels": labels, "namespace": namespace}, "spec": {"template": {"spec": 7}}});
            read_trimmed(job.to_string().as_bytes(), &keys).unwrap()
        };
        let read = |labels: &Labels| read_in("ci", labels);
        let job = read(&labels);
        assert_eq!(job.labels, Labels::from([("app".to_owned(), "x".to_owned())]));
        assert!(job.knows_labels(keys.of("ci")) && job.kept_labels.is_some());
        assert_eq!(read_in("qa", &labels).labels, Labels::new(), "the policy is of another namespace");
        assert!(read(&job.labels).kept_labels.is_none(), "nothing was dropped");
        assert!(read_trimmed(br#"{"metadata":{"labels":[]}}"#, &keys).is_err());
    }

    #[test]
    fn a_listed_job_takes_little_memory_whatever_its_author_writes() {
        let labels: Labels = (0..64).map(|n| (format!("{n:02}{}", "k".repeat(60)), "v".repeat(60))).collect();
        let policy = namespaced("p", json!({"jobSelector": {"matchLabels": labels}}));
        let keys = NamespaceLabelKeys::new([&*policy]);
        let annotations: Labels = keys::ON_JOBS.map(|key| (key.to_owned(), "x".repeat(60_000))).into();
        let job = json!({"metadata": {"labels": labels, "namespace": "ci", "annotations": annotations}});
        let job = read_trimmed(job.to_string().as_bytes(), &keys).unwrap();
        let texts = job.labels.iter().chain(&job.annotations).map(|(key, value)| key.len() + value.len());
        assert!(texts.sum::<usize>() < 10 << 10 && job.has_cut_labels, "{job:?}");
    }

    #[test]
    fn a_review_reads_no_more_labels_than_memory_can_hold() {
        let labels =
            |count: usize| -> Labels { (0..count).map(|n| (format!("l{n}"), String::new())).collect() };
        for on_template in [false, true] {
            let read = |count: usize| {
                let labels = json!({"labels": labels(count)});
                serde_json::from_value::<JobView>(match on_template {
                    true => json!({"spec": {"template": {"metadata": labels}}}),
                    false => json!({"metadata": labels}),
                })
            };
            assert!(read(10_000).is_ok());
            let why = read(100_000).unwrap_err().to_string();
            assert!(why.contains("labels take more than 256 KiB"), "{why}");
        }
    }
}
