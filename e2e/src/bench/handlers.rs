//! What ours is compared with: handlers that do nothing, and one that is written the usual way, with typed objects.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use job_handler_shared::policy::{
    effective::{Bound, Effective},
    reference::Labels,
    set::PolicySet,
};
use job_handler_shared::{job::group, keys};
use k8s_openapi::api::batch::v1::Job;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::error::{Error, Result};

/// Answers a review's bytes with an answer's bytes, or says why not.
pub type Answering = Arc<dyn Fn(&[u8]) -> Result<Vec<u8>, String> + Send + Sync>;

/// Allows everything. The review is not parsed; only its uid, which the apiserver puts at the head and wants back, is
/// copied.
pub fn null() -> Answering {
    Arc::new(|body| {
        let uid = uid(body)?;
        Ok(format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{{"uid":"{uid}","allowed":true}}}}"#
        )
        .into_bytes())
    })
}

/// As [`null`], but with a patch in the answer: always the one of `answer`. What it costs more than [`null`] is the
/// apiserver's own work on a patch.
///
/// # Errors
/// If `answer` is no answer with a patch.
pub fn same_patch(answer: &[u8]) -> Result<Answering> {
    let wrong = |why: String| Error::Invalid(format!("expected an answer with a patch: {why}"));
    let answer: Value = serde_json::from_slice(answer).map_err(|error| wrong(error.to_string()))?;
    let patch = answer["response"]["patch"].as_str().ok_or_else(|| wrong(answer.to_string()))?.to_owned();
    Ok(Arc::new(move |body| {
        let uid = uid(body)?;
        Ok(format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{{"uid":"{uid}","allowed":true,"patchType":"JSONPatch","patch":"{patch}"}}}}"#
        )
        .into_bytes())
    }))
}

/// Stamps as ours does, with everything as types: the review is read into a `Job`, a copy is changed, both are
/// compared, the difference is the patch.
pub fn typed(policies: PolicySet) -> Answering {
    Arc::new(move |body| {
        let review: TypedReview = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let request = review.request;
        let before = request.object.ok_or("the review has no object")?;
        let mut after = before.clone();
        stamp(&mut after, &request.namespace, &policies);
        let before = serde_json::to_value(before).map_err(|error| error.to_string())?;
        let after = serde_json::to_value(after).map_err(|error| error.to_string())?;
        let patch = json_patch::diff(&before, &after);
        let patch = serde_json::to_vec(&patch).map_err(|error| error.to_string())?;
        let answer = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "response": {
                "uid": request.uid,
                "allowed": true,
                "patchType": "JSONPatch",
                "patch": STANDARD.encode(patch),
            },
        });
        serde_json::to_vec(&answer).map_err(|error| error.to_string())
    })
}

/// The uid of a review whose bytes are as the apiserver writes them: the request's first field.
fn uid(body: &[u8]) -> Result<&str, String> {
    const BEFORE: &[u8] = br#""request":{"uid":""#;
    let head = body.get(..256).unwrap_or(body);
    let begin = head.windows(BEFORE.len()).position(|window| window == BEFORE);
    let uid = begin.and_then(|begin| {
        let rest = head.get(begin + BEFORE.len()..)?;
        std::str::from_utf8(rest.split(|byte| *byte == b'"').next()?).ok()
    });
    uid.ok_or_else(|| "the review does not begin as the apiserver's do".to_owned())
}

#[derive(Deserialize)]
struct TypedReview {
    request: TypedRequest,
}

#[derive(Deserialize)]
struct TypedRequest {
    uid: String,
    namespace: String,
    object: Option<Job>,
}

fn stamp(job: &mut Job, namespace: &str, policies: &PolicySet) {
    let labels: Labels = job.metadata.labels.clone().unwrap_or_default();
    let effective = Effective::of(policies.matching(namespace, &Labels::new(), &labels), &labels);
    let (Some(spec), mut told) = (job.spec.as_mut(), Vec::new()) else { return };
    let ttl = settled(spec.ttl_seconds_after_finished.map(i64::from), &effective.ttl, "ttl", &mut told);
    let deadline = settled(spec.active_deadline_seconds, &effective.deadline, "deadline", &mut told);
    let backoff = spec.backoff_limit.filter(|limit| *limit != 6).map(i64::from);
    let backoff = settled(backoff, &effective.backoff_limit, "backoffLimit", &mut told);
    let annotations = job.metadata.annotations.get_or_insert_default();
    if let (Some(results), Some(ttl)) = (&effective.results, ttl) {
        annotations.insert(keys::TTL.to_owned(), ttl.to_string());
        let kept = ttl.max(results.harvest_deadline_seconds.into());
        spec.ttl_seconds_after_finished = i32::try_from(kept).ok();
    } else if let Some(ttl) = ttl {
        spec.ttl_seconds_after_finished = i32::try_from(ttl).ok();
    }
    spec.active_deadline_seconds = deadline;
    spec.backoff_limit = backoff.and_then(|limit| i32::try_from(limit).ok()).or(spec.backoff_limit);
    let mut added: BTreeMap<String, String> =
        effective.labels.into_iter().map(|(key, from)| (key, from.value)).collect();
    if let Some(spec) = &effective.group
        && let Ok(group) = group::group_of(&spec.value, &labels, None)
    {
        told.push(format!("group: {} ({})", group.value, spec.policy));
        added.insert(keys::GROUP.to_owned(), group.value);
    }
    annotations.insert(keys::STAMPED.to_owned(), told.join("; "));
    let template = spec.template.metadata.get_or_insert_default();
    for labels in [job.metadata.labels.get_or_insert_default(), template.labels.get_or_insert_default()] {
        for (key, value) in &added {
            labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}

/// What a field becomes: its own value or the default, no more than the maximum.
fn settled(value: Option<i64>, bound: &Bound, name: &str, told: &mut Vec<String>) -> Option<i64> {
    let from = bound.default.as_ref().map(|default| default.value);
    let wanted = value.or(from)?;
    let settled = bound.max.as_ref().map_or(wanted, |max| wanted.min(max.value));
    if Some(settled) != value {
        let policy = bound.default.as_ref().or(bound.max.as_ref()).map(|from| from.policy.to_string());
        told.push(format!("{name}: {value:?} -> {settled} ({})", policy.unwrap_or_default()));
    }
    Some(settled)
}
