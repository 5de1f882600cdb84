//! Parses an AdmissionReview.
//!
//! | request | response |
//! | --- | --- |
//! | not JSON, another kind or version, no request, no uid | HTTP 400 with the reason: without uid and version there is no review response |
//! | more than [`MAX_BODY`] | HTTP 413 |
//! | a Job of more than [`MAX_OBJECT`], or with labels of more than 256 KiB | like a Job that cannot be read |
//! | another kind of object, a subresource, an operation without an object | allowed, with a warning: the webhook configuration is wrong, and blocking unrelated objects does not help |
//! | a Job that cannot be read | `/mutate`: allowed without stamps, with a warning; `/validate`: denied, because it cannot be counted |
//! | a large or deeply nested Job | handled like any other; unneeded fields are skipped |

use std::borrow::Cow;

use job_handler_shared::text::human_bytes;
use serde::{Deserialize, de::IgnoredAny};

use crate::job_view::JobView;

/// Largest Job in bytes: the apiserver's limit of a request (`MaxRequestBodyBytes`).
const MAX_OBJECT: usize = 3 << 20;
/// Most bytes of a review besides its objects: the user with its groups, options.
const MAX_ENVELOPE: usize = 1 << 20;
/// Largest body in bytes. An update has two objects.
pub(super) const MAX_BODY: usize = 2 * MAX_OBJECT + MAX_ENVELOPE;

/// The supported version of `AdmissionReview`.
pub(super) const API_VERSION: &str = "admission.k8s.io/v1";

/// The request of an AdmissionReview.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct AdmissionReview {
    /// `request.uid`, different for every call.
    pub(super) uid: String,
    pub(super) namespace: String,
    /// Decide without side effects.
    pub(super) dry_run: bool,
    pub(super) object: ReviewedObject,
}

/// The object of a review, by operation.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum ReviewedObject {
    Create(Box<JobView>),
    Update {
        new: Box<JobView>,
        /// The stored Job.
        old: Box<JobView>,
    },
    /// Not a create or update of a Job; holds the reason.
    Unsupported(String),
    /// A Job that cannot be read; holds the reason.
    Unreadable(String),
}

impl ReviewedObject {
    /// The Job after the operation.
    pub(super) fn job(&self) -> Option<&JobView> {
        match self {
            Self::Create(job) | Self::Update { new: job, .. } => Some(job),
            Self::Unsupported(_) | Self::Unreadable(_) => None,
        }
    }

    /// The operation, for logs.
    pub(super) fn operation(&self) -> &'static str {
        match self {
            Self::Create(_) => "CREATE",
            Self::Update { .. } => "UPDATE",
            Self::Unsupported(_) | Self::Unreadable(_) => "",
        }
    }
}

/// Why a body is not an AdmissionReview.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum ReviewError {
    #[error("expected an AdmissionReview ({API_VERSION}) as JSON: {0}")]
    Shape(String),
    #[error("expected kind AdmissionReview, found `{0}`")]
    Kind(String),
    #[error(
        "expected apiVersion {API_VERSION}, found `{0}`: set admissionReviewVersions: [v1] in the webhook configuration"
    )]
    Version(String),
    /// For example, a response.
    #[error("the AdmissionReview has no request")]
    NoRequest,
    #[error("the AdmissionReview's request has no uid")]
    NoUid,
}

/// Parses a review.
///
/// # Errors
/// If there is no uid that a response could refer to.
pub(super) fn parse(bytes: &[u8]) -> Result<AdmissionReview, ReviewError> {
    // A valid review is read in one pass. The second, tolerant pass only finds out what is wrong.
    match serde_json::from_slice::<RawReview<'_, JobView>>(bytes) {
        Ok(review) => {
            let request = review.into_request()?;
            if let Some(why) = request.unsupported() {
                return Ok(request.review(ReviewedObject::Unsupported(why)));
            }
            if request.old_object.is_none() && bytes.len() > MAX_OBJECT + MAX_ENVELOPE {
                let why = format!("this Job is larger than {}", human_bytes(MAX_OBJECT as u64));
                return Ok(request.review(ReviewedObject::Unreadable(why)));
            }
            Ok(request.into_review())
        }
        Err(error) => {
            let why = short(&error.to_string());
            let review: RawReview<'_, IgnoredAny> =
                serde_json::from_slice(bytes).map_err(|e| ReviewError::Shape(short(&e.to_string())))?;
            let request = review.into_request()?;
            let object = match request.unsupported() {
                Some(why) => ReviewedObject::Unsupported(why),
                None => ReviewedObject::Unreadable(format!("this Job cannot be read: {why}")),
            };
            Ok(request.review(object))
        }
    }
}

// Strings without JSON escapes are borrowed from the body.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "O: Deserialize<'de>"))]
struct RawReview<'a, O> {
    #[serde(default, borrow)]
    api_version: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(default = "none", borrow)]
    request: Option<RawRequest<'a, O>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "O: Deserialize<'de>"))]
struct RawRequest<'a, O> {
    #[serde(default)]
    uid: String,
    #[serde(default, borrow)]
    kind: RawKind<'a>,
    #[serde(default, borrow)]
    sub_resource: Cow<'a, str>,
    #[serde(default, borrow)]
    name: Cow<'a, str>,
    #[serde(default)]
    namespace: String,
    #[serde(default, borrow)]
    operation: Cow<'a, str>,
    #[serde(default)]
    dry_run: Option<bool>,
    #[serde(default = "none")]
    object: Option<O>,
    #[serde(default = "none")]
    old_object: Option<O>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawKind<'a> {
    #[serde(borrow)]
    group: Cow<'a, str>,
    #[serde(borrow)]
    version: Cow<'a, str>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
}

fn none<T>() -> Option<T> {
    None
}

impl<'a, O> RawReview<'a, O> {
    fn into_request(self) -> Result<RawRequest<'a, O>, ReviewError> {
        let kind = self.kind.unwrap_or_default();
        if kind != "AdmissionReview" {
            return Err(ReviewError::Kind(short(&kind)));
        }
        let version = self.api_version.unwrap_or_default();
        if version != API_VERSION {
            return Err(ReviewError::Version(short(&version)));
        }
        let request = self.request.ok_or(ReviewError::NoRequest)?;
        if request.uid.is_empty() { Err(ReviewError::NoUid) } else { Ok(request) }
    }
}

impl<O> RawRequest<'_, O> {
    fn unsupported(&self) -> Option<String> {
        let RawKind { group, version, kind } = &self.kind;
        if (&**group, &**version, &**kind) != ("batch", "v1", "Job") {
            let found = short(&format!("{kind} ({group}/{version})"));
            return Some(format!("expected a Job (batch/v1), found {found}"));
        }
        if !self.sub_resource.is_empty() {
            return Some(format!("expected a Job, found its subresource `{}`", short(&self.sub_resource)));
        }
        let missing = match &*self.operation {
            "CREATE" => self.object.is_none().then_some("object"),
            "UPDATE" => (self.object.is_none() || self.old_object.is_none()).then_some("object or oldObject"),
            other => return Some(format!("expected CREATE or UPDATE, found operation `{}`", short(other))),
        };
        missing.map(|field| format!("the {} of a Job came without {field}", self.operation))
    }

    fn review(self, object: ReviewedObject) -> AdmissionReview {
        AdmissionReview {
            uid: self.uid,
            namespace: self.namespace,
            dry_run: self.dry_run.unwrap_or_default(),
            object,
        }
    }
}

impl RawRequest<'_, JobView> {
    /// Call it only if [`Self::unsupported`] returns none.
    fn into_review(mut self) -> AdmissionReview {
        let (new, old) = (self.object.take(), self.old_object.take());
        let create = self.operation == "CREATE";
        let fill = |mut job: JobView| {
            // The object may omit the namespace, but it cannot differ from the request's.
            job.snapshot.namespace.clone_from(&self.namespace);
            if job.snapshot.name.is_empty() {
                job.snapshot.name = self.name.to_string();
            }
            Box::new(job)
        };
        let object = match (new, old) {
            (Some(job), _) if create => ReviewedObject::Create(fill(job.without_status())),
            (Some(new), Some(old)) => ReviewedObject::Update { new: fill(new), old: fill(old) },
            _ => ReviewedObject::Unsupported("a review of a Job came without the Job".to_owned()),
        };
        self.review(object)
    }
}

/// Shortens parser errors, which may quote megabytes of input.
fn short(text: &str) -> String {
    const MAX: usize = 200;
    if text.chars().count() <= MAX {
        return text.to_owned();
    }
    let head: String = text.chars().take(MAX).collect();
    format!("{head}…")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn review(request: serde_json::Value) -> Vec<u8> {
        json!({"apiVersion": API_VERSION, "kind": "AdmissionReview", "request": request})
            .to_string()
            .into_bytes()
    }

    fn kind(kind: &str) -> serde_json::Value {
        json!({"group": "batch", "version": "v1", "kind": kind})
    }

    #[rstest]
    #[case("", "expected an AdmissionReview")]
    #[case("hello", "expected an AdmissionReview")]
    #[case("[]", "expected kind AdmissionReview")]
    #[case("{}", "expected kind AdmissionReview")]
    #[case(r#"{"kind":"AdmissionReview"}"#, "expected apiVersion admission.k8s.io/v1")]
    #[case(
        r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1beta1","request":{"uid":"u"}}"#,
        "v1beta1"
    )]
    #[case(r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}"#, "no request")]
    #[case(r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{}}"#, "no uid")]
    #[case(
        r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":7}"#,
        "expected an AdmissionReview"
    )]
    fn an_invalid_review_is_rejected_with_the_reason(#[case] body: &str, #[case] expected: &str) {
        let error = parse(body.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn other_kinds_and_operations_are_unsupported() {
        let pod = json!({"uid": "u", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
            "object": {"spec": "not even a Pod"}});
        for request in [
            pod,
            json!({"uid": "u", "kind": kind("CronJob"), "operation": "CREATE", "object": {}}),
            json!({"uid": "u", "kind": kind("Job"), "operation": "UPDATE", "subResource": "status", "object": {}, "oldObject": {}}),
            json!({"uid": "u", "kind": kind("Job"), "operation": "DELETE", "oldObject": {}}),
            json!({"uid": "u", "kind": kind("Job"), "operation": "CREATE", "object": null}),
            json!({"uid": "u", "kind": kind("Job"), "operation": "UPDATE", "object": {}}),
        ] {
            let review = parse(&review(request.clone())).unwrap();
            assert!(matches!(review.object, ReviewedObject::Unsupported(_)), "{request} -> {review:?}");
        }
    }

    #[test]
    fn an_unreadable_job_has_a_short_reason() {
        let huge = "x".repeat(1 << 20);
        let request =
            json!({"uid": "u", "kind": kind("Job"), "operation": "CREATE", "object": {"spec": huge}});
        let ReviewedObject::Unreadable(why) = parse(&review(request)).unwrap().object else { panic!() };
        assert!(why.starts_with("this Job cannot be read: invalid type") && why.len() < 400, "{why}");
    }

    #[test]
    fn the_status_of_a_create_is_ignored() {
        let request = json!({"uid": "u", "kind": kind("Job"), "operation": "CREATE", "namespace": "ci", "name": "a",
            "object": {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}});
        let ReviewedObject::Create(job) = parse(&review(request)).unwrap().object else { panic!() };
        assert!(job.snapshot.is_active());
        assert_eq!(job.snapshot.key(), "ci/a");
    }

    proptest! {
        #[test]
        fn parsing_arbitrary_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _: Result<AdmissionReview, ReviewError> = parse(&bytes);
        }

        #[test]
        fn parsing_a_damaged_review_never_panics(at in 0usize..400, byte in any::<u8>(), cut in 0usize..400) {
            let request = json!({"uid": "u", "kind": kind("Job"), "operation": "UPDATE", "namespace": "ci", "name": "a",
                "object": {"metadata": {"labels": {"a": "b"}, "annotations": {"job-handler/stamped": "x"}},
                    "spec": {"backoffLimit": 6, "template": {"metadata": {}}}}, "oldObject": {"status": {"active": 1}}});
            let mut bytes = review(request);
            if let Some(place) = bytes.get_mut(at) { *place = byte; }
            let _: Result<AdmissionReview, ReviewError> = parse(&bytes);
            bytes.truncate(cut);
            let _: Result<AdmissionReview, ReviewError> = parse(&bytes);
        }
    }
}
