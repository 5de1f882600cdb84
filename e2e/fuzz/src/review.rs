//! A review, from an apiserver or from anybody who reaches the port.
//!
//! Each endpoint answers it, or says what is wrong with it. If an apiserver could have sent it, the patch of `/mutate`
//! applies, changes only our fields, and a second call with the patched Job (`reinvocationPolicy: IfNeeded`) changes
//! nothing.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use job_handler_shared::{
    names::{is_label_value, is_object_name},
    policy::{reference::Labels, set::PolicySet},
    testing::policies::{cluster, namespaced},
};
use job_handler_webhook::admission::{
    mutate::mutate, response::HttpReply, state::WebhookState, validate::validate, warn::warn,
};
use json_patch::{Patch, PatchOperation};
use k8s_openapi::api::batch::v1::Job;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::block_on;

/// How long the caller waits.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest warning that clients show in full, characters.
const MAX_WARNING: usize = 256;
/// Longest plain text about a request that is not a review, bytes.
const MAX_PLAIN_TEXT: usize = 2048;

thread_local! {
    static STATE: WebhookState =
        WebhookState::fixed(policies(), [("ci".to_owned(), Labels::new()), ("other".to_owned(), Labels::new())]);
}

/// In namespace `ci`, everything that can be stamped; in all others, groups by owner and a queue.
fn policies() -> PolicySet {
    let everything = json!({
        "stamp": {
            "ttlSecondsAfterFinished": {"default": 3600, "max": 86400},
            "activeDeadlineSeconds": {"default": 1800, "max": 7200},
            "backoffLimit": {"default": 0, "max": 3},
            "labels": {"team": "build", "cost.example.com/centre": "42"},
            "containerResources": {"limits": {"cpu": "2", "memory": "4Gi"}},
        },
        "group": {"type": "Labels", "labelKeys": ["app"]},
        "results": {},
        "cleanup": {"succeededPolicy": "AfterTTL", "failedPolicy": "Never"},
    });
    let queued = json!({
        "jobSelector": {"matchLabels": {"app": "queued"}},
        "limits": [{"name": "few", "maxActiveJobs": 1, "whenFull": "Queue"}],
    });
    let once = json!({
        "jobSelector": {"matchExpressions": [{"key": "seen", "operator": "DoesNotExist"}]},
        "stamp": {"labels": {"seen": "yes"}},
    });
    let warns =
        json!({"mode": "Warn", "stamp": {"activeDeadlineSeconds": {"max": 60}, "labels": {"tier": "x"}}});
    let owners = json!({
        "group": {"type": "Owner"},
        "failureBackoff": {"initialSeconds": 10, "maxSeconds": 60, "action": "Queue"},
    });
    PolicySet::new([
        namespaced("everything", everything),
        namespaced("queued", queued),
        namespaced("once", once),
        namespaced("warns", warns),
        cluster("owners", owners),
    ])
}

/// Checks one input.
pub fn check(bytes: &[u8]) {
    STATE.with(|state| {
        let (mutated, validated, warned) = block_on(async {
            (
                mutate(bytes, state).await,
                validate(bytes, TIMEOUT, state).await,
                warn(bytes, TIMEOUT, state).await,
            )
        });
        let review: Value = serde_json::from_slice(bytes).unwrap_or_default();
        for (endpoint, reply) in [("mutate", &mutated), ("validate", &validated), ("warn", &warned)] {
            assert_answers(endpoint, reply, &review);
        }
        if is_from_apiserver(&review) {
            assert_stable(&review, &mutated, state);
        }
    });
}

/// Checks that the reply is a response to this review, or a short text about what is no review.
fn assert_answers(endpoint: &str, reply: &HttpReply, review: &Value) {
    let text = std::str::from_utf8(&reply.body).unwrap();
    if reply.status != 200 {
        assert_eq!(reply.status, 400, "{endpoint}: {text}");
        assert!(text.len() <= MAX_PLAIN_TEXT && text.ends_with('\n'), "{endpoint}: {text}");
        return;
    }
    let answer: Value = serde_json::from_str(text).unwrap();
    assert_eq!(answer["kind"], "AdmissionReview", "{endpoint}");
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1", "{endpoint}");
    let response = &answer["response"];
    if let Some(uid) = review["request"]["uid"].as_str() {
        assert_eq!(response["uid"], uid, "{endpoint}");
    }
    if response["allowed"] != true {
        assert_eq!(response["allowed"], false, "{endpoint}");
        assert_eq!(endpoint, "validate", "only /validate denies: {text}");
        let status = &response["status"];
        assert!(status["code"].as_u64().is_some_and(|code| (400..600).contains(&code)), "{text}");
        assert!(status["message"].as_str().is_some_and(|message| !message.is_empty()), "{text}");
    }
    for warning in response["warnings"].as_array().into_iter().flatten() {
        assert!(warning.as_str().unwrap().chars().count() <= MAX_WARNING, "{endpoint}: {warning}");
    }
    assert_eq!(response["patch"].is_string(), response["patchType"] == "JSONPatch", "{endpoint}");
}

/// Whether an apiserver could have sent it. Before it asks webhooks, it decodes the Job and encodes it again, and it
/// stores no Job with names and labels that are not valid.
fn is_from_apiserver(review: &Value) -> bool {
    let request = &review["request"];
    let is_job = |job: &Value| {
        let has_valid_labels = |pointer: &str| {
            let labels = job.pointer(pointer).and_then(Value::as_object);
            labels.into_iter().flatten().all(|(key, value)| {
                key.rsplit('/').all(|part| is_label_value(part) && !part.is_empty())
                    && value.as_str().is_some_and(is_label_value)
            })
        };
        let mut names: Vec<&str> = ["initContainers", "containers"]
            .into_iter()
            .filter_map(|list| job["spec"]["template"]["spec"][list].as_array())
            .flatten()
            .map(|container| container["name"].as_str().unwrap_or_default())
            .collect();
        let containers = names.len();
        names.sort_unstable();
        names.dedup();
        job["metadata"].is_object()
            && job["spec"]["template"].is_object()
            && Job::deserialize(job).is_ok()
            && has_valid_labels("/metadata/labels")
            && has_valid_labels("/spec/template/metadata/labels")
            && names.len() == containers
            && names.into_iter().all(is_object_name)
    };
    is_job(&request["object"]) && (request["operation"] != "UPDATE" || is_job(&request["oldObject"]))
}

/// Checks that the patch applies, and that a second call changes nothing.
fn assert_stable(review: &Value, reply: &HttpReply, state: &WebhookState) {
    let Some(patch) = patch_of(reply) else { return };
    for operation in &patch.0 {
        let is_expected = matches!(operation, PatchOperation::Add(_) | PatchOperation::Remove(_));
        assert!(is_expected && is_ours(operation.path().as_str()), "{operation:?}");
    }
    let mut again = review.clone();
    json_patch::patch(&mut again["request"]["object"], &patch).unwrap();
    let second = block_on(mutate(again.to_string().as_bytes(), state));
    let second = patch_of(&second);
    assert!(second.is_none(), "not stable: {patch:?}\nthen {second:?}");
}

fn patch_of(reply: &HttpReply) -> Option<Patch> {
    let answer: Value = serde_json::from_slice(&reply.body).ok()?;
    let patch = STANDARD.decode(answer["response"]["patch"].as_str()?).unwrap();
    Some(serde_json::from_slice(&patch).unwrap())
}

/// Whether a path of a patch is a field that job-handler may set. Of annotations, only its own.
fn is_ours(path: &str) -> bool {
    const FIELDS: [&str; 6] = [
        "/spec/ttlSecondsAfterFinished",
        "/spec/activeDeadlineSeconds",
        "/spec/backoffLimit",
        "/spec/suspend",
        "/metadata/annotations",
        "/spec/template/metadata",
    ];
    let is_resources = ["initContainers", "containers"].iter().any(|list| {
        let container = path.strip_prefix(&format!("/spec/template/spec/{list}/"));
        container.and_then(|rest| rest.split_once('/')).is_some_and(|(_, rest)| rest.starts_with("resources"))
    });
    FIELDS.contains(&path)
        || path.starts_with("/metadata/labels")
        || path.starts_with("/metadata/annotations/job-handler~1")
        || path.starts_with("/spec/template/metadata/labels")
        || is_resources
}
