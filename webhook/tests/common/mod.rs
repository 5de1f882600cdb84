//! Policies and Jobs for tests, and a Job's way through `/mutate` as the apiserver takes it.

#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests; clippy knows only #[test] itself")]

use std::sync::Arc;

use jiff::Timestamp;
use job_handler_shared::{
    policy::{parsed::Policy, reference::Labels, set::PolicySet},
    testing::policies::{cluster_job_policy, job_policy},
};
use job_handler_webhook::{
    job_view::JobView,
    stamp::{
        decide::{self, StampContext, StampDecision},
        patch,
    },
};
use json_patch::{Patch, PatchOperation};
use serde_json::{Value, json};

/// A JobPolicy of namespace `ci`.
pub fn policy(name: &str, spec: Value) -> Arc<Policy> {
    job_policy(json!({"name": name, "namespace": "ci", "uid": format!("uid-{name}"), "generation": 1}), spec)
}

/// A ClusterJobPolicy.
pub fn cluster_policy(name: &str, spec: Value) -> Arc<Policy> {
    cluster_job_policy(json!({"name": name, "uid": format!("uid-{name}"), "generation": 1}), spec)
}

/// The numbers of the image-build case.
pub fn builds() -> Value {
    json!({
        "jobSelector": {"matchLabels": {"app": "build"}},
        "stamp": {
            "ttlSecondsAfterFinished": {"default": 86400, "max": 604_800},
            "activeDeadlineSeconds": {"default": 1800, "max": 7200},
            "backoffLimit": {"default": 0, "max": 3},
            "labels": {"team": "build"},
        },
        "group": {"type": "Labels", "labelKeys": ["id"]},
        "limits": [{"name": "concurrent-builds", "maxActiveJobs": 10}],
        "results": {},
    })
}

/// The review of a create of this Job in namespace `ci`.
pub fn review(object: &Value) -> Vec<u8> {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u-1", "kind": {"group": "batch", "version": "v1", "kind": "Job"}, "operation": "CREATE",
        "namespace": "ci", "name": "a", "object": object, "oldObject": null, "dryRun": false,
        "options": {"kind": "CreateOptions"}, "userInfo": {"username": "x"}}})
    .to_string()
    .into_bytes()
}

/// A Job as it arrives in `/mutate`, with the API's defaults.
pub fn job(labels: Value, spec: Value) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "a", "namespace": "ci", "creationTimestamp": null, "labels": labels},
        "spec": {
            "parallelism": 1, "completions": 1, "backoffLimit": 6, "suspend": false, "newIn199": {"kept": [1, 2]},
            "template": {"metadata": {"creationTimestamp": null},
                "spec": {"containers": [{"name": "main", "image": "x"}], "restartPolicy": "Never"}},
        },
        "status": {},
    });
    for (key, value) in spec.as_object().unwrap() {
        job["spec"][key] = value.clone();
    }
    job
}

pub const NOW: &str = "2026-01-01T12:00:00Z";

/// A webhook with these policies.
#[derive(Debug)]
pub struct Webhook {
    pub set: PolicySet,
    pub namespace: Labels,
    pub now: Timestamp,
}

impl Webhook {
    pub fn new(policies: impl IntoIterator<Item = Arc<Policy>>) -> Self {
        Self { set: PolicySet::new(policies), namespace: Labels::new(), now: NOW.parse().unwrap() }
    }

    pub fn builds() -> Self {
        Self::new([policy("builds", builds())])
    }

    fn context(&self) -> StampContext<'_> {
        StampContext { policies: &self.set, namespace_labels: &self.namespace, now: self.now }
    }

    pub fn create_ops(&self, job: &Value) -> (Vec<PatchOperation>, StampDecision) {
        let view = view(job);
        let decision = decide::create(&view, self.context());
        (patch::patch(&view, &decision), decision)
    }

    pub fn update_ops(&self, old: &Value, new: &Value) -> (Vec<PatchOperation>, StampDecision) {
        let view = view(new);
        let decision = decide::update(&view, &self::view(old), self.context());
        (patch::patch(&view, &decision), decision)
    }

    /// The Job as it is after a create, and what its author was warned of. Checks that nothing happens when the webhook
    /// is called again on its own output, a little later.
    pub fn create(&self, job: &Value) -> (Value, Vec<String>) {
        let (ops, decision) = self.create_ops(job);
        let after = applied(job, ops);
        let later = Self {
            now: self.now.checked_add(jiff::SignedDuration::from_secs(5)).unwrap(),
            set: self.set.clone(),
            namespace: self.namespace.clone(),
        };
        let (again, second) = later.create_ops(&after);
        assert!(again.is_empty(), "not idempotent on\n{after:#}\n{again:#?}");
        assert!(second.warnings.is_empty(), "warned twice: {:?}", second.warnings);
        (after, decision.warnings)
    }

    /// The same for an update.
    pub fn update(&self, old: &Value, new: &Value) -> (Value, Vec<String>) {
        let (ops, decision) = self.update_ops(old, new);
        let after = applied(new, ops);
        let (again, _) = self.update_ops(old, &after);
        assert!(again.is_empty(), "not idempotent on\n{after:#}\n{again:#?}");
        (after, decision.warnings)
    }
}

pub fn view(job: &Value) -> JobView {
    serde_json::from_value(job.clone()).unwrap()
}

pub fn applied(job: &Value, ops: Vec<PatchOperation>) -> Value {
    let mut job = job.clone();
    json_patch::patch(&mut job, &Patch(ops)).unwrap();
    job
}

/// What a stored Job looks like in a three-way or merge patch: `old` with some fields changed.
pub fn with(old: &Value, pointer: &str, value: Value) -> Value {
    let mut new = old.clone();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = new.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    let key = key.replace("~1", "/");
    if value.is_null() {
        parent.remove(&key);
    } else {
        parent.insert(key, value);
    }
    new
}

pub fn annotation<'a>(job: &'a Value, key: &str) -> &'a str {
    job["metadata"]["annotations"][key].as_str().unwrap_or_default()
}
