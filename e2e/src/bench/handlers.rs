//! Handlers to compare ours with: two that do nothing, and one with typed objects, as most webhooks are written.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use job_handler_shared::policy::{
    effective::{CombinedRange, EffectivePolicy},
    reference::Labels,
    set::PolicySet,
};
use job_handler_shared::{job::group, keys};
use k8s_openapi::api::batch::v1::Job;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::harness::error::{Error, Result};

/// Answers the bytes of a review, or returns why it cannot.
pub type HandlerFn = Arc<dyn Fn(&[u8]) -> Result<Vec<u8>, String> + Send + Sync>;

/// Allows everything. It does not parse the review, only copies its uid, which the apiserver writes first.
pub fn null() -> HandlerFn {
    Arc::new(|body| {
        let uid = uid(body)?;
        Ok(format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{{"uid":"{uid}","allowed":true}}}}"#
        )
        .into_bytes())
    })
}

/// Like [`null`], but always answers with the patch of `answer`. The difference to [`null`] is the apiserver's work on
/// a patch.
///
/// # Errors
/// If `answer` has no patch.
pub fn same_patch(answer: &[u8]) -> Result<HandlerFn> {
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

/// Stamps like ours, with typed objects: it parses the review into a `Job`, changes a copy, and answers with the
/// difference as a patch.
pub fn typed(policies: PolicySet) -> HandlerFn {
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

/// The uid of a review as the apiserver writes it: the request's first field.
fn uid(body: &[u8]) -> Result<&str, String> {
    const BEFORE: &[u8] = br#""request":{"uid":""#;
    let head = body.get(..256).unwrap_or(body);
    let begin = head.windows(BEFORE.len()).position(|window| window == BEFORE);
    let uid = begin.and_then(|begin| {
        let rest = head.get(begin + BEFORE.len()..)?;
        std::str::from_utf8(rest.split(|byte| *byte == b'"').next()?).ok()
    });
    uid.ok_or_else(|| "the review does not begin like those of the apiserver".to_owned())
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
    let effective = EffectivePolicy::combine(policies.matching(namespace, &Labels::new(), &labels), &labels);
    let (Some(spec), mut changes) = (job.spec.as_mut(), Vec::new()) else { return };
    let ttl = bounded(spec.ttl_seconds_after_finished.map(i64::from), &effective.ttl, "ttl", &mut changes);
    let deadline = bounded(spec.active_deadline_seconds, &effective.deadline, "deadline", &mut changes);
    let backoff = spec.backoff_limit.filter(|limit| *limit != 6).map(i64::from);
    let backoff = bounded(backoff, &effective.backoff_limit, "backoffLimit", &mut changes);
    let annotations = job.metadata.annotations.get_or_insert_default();
    if let (Some(results), Some(ttl)) = (&effective.results, ttl) {
        annotations.insert(keys::TTL.to_owned(), ttl.to_string());
        let until_harvest = ttl.max(results.harvest_deadline_seconds.into());
        spec.ttl_seconds_after_finished = i32::try_from(until_harvest).ok();
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
        changes.push(format!("group: {} ({})", group.value, spec.policy));
        added.insert(keys::GROUP.to_owned(), group.value);
    }
    annotations.insert(keys::STAMPED.to_owned(), changes.join("; "));
    let template = spec.template.metadata.get_or_insert_default();
    for labels in [job.metadata.labels.get_or_insert_default(), template.labels.get_or_insert_default()] {
        for (key, value) in &added {
            labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}

/// A field's own value or the default, at most the maximum.
fn bounded(value: Option<i64>, bound: &CombinedRange, name: &str, changes: &mut Vec<String>) -> Option<i64> {
    let from = bound.default.as_ref().map(|default| default.value);
    let wanted = value.or(from)?;
    let value_set = bound.max.as_ref().map_or(wanted, |max| wanted.min(max.value));
    if Some(value_set) != value {
        let policy = bound.default.as_ref().or(bound.max.as_ref()).map(|from| from.policy.to_string());
        changes.push(format!("{name}: {value:?} -> {value_set} ({})", policy.unwrap_or_default()));
    }
    Some(value_set)
}
