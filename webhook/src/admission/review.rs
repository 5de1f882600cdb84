//! Bytes -> review.
//!
//! | what came | what is answered |
//! | --- | --- |
//! | not JSON, not an `AdmissionReview`, another version of it, no request, no uid | HTTP 400 and why: there is no uid, or no version, to answer with |
//! | more than [`MAX_BODY`] | HTTP 413 |
//! | another kind, a subresource, an operation without an object | allowed as it is, with a warning: the fault is in a webhook configuration, and blocking other people's objects would not mend it |
//! | a Job that cannot be read | `/mutate`: allowed unstamped, with a warning; `/validate`: denied, since it cannot be counted |
//! | a Job that is large or nests deeply | decided like any other: what is not needed is skipped |

use std::borrow::Cow;

use serde::{Deserialize, de::IgnoredAny};

use crate::job_view::JobView;

/// Largest body that is read, bytes. An update carries two objects of up to 3 MiB each (the apiserver's own limit).
pub const MAX_BODY: usize = 8 << 20;

/// The one version of `AdmissionReview` that is spoken.
pub const API_VERSION: &str = "admission.k8s.io/v1";

/// A request for admission.
#[derive(Clone, Debug, PartialEq)]
pub struct Review {
    /// `request.uid`: new for every call.
    pub uid: String,
    /// `request.namespace`.
    pub namespace: String,
    /// Decide, but leave nothing behind.
    pub dry_run: bool,
    /// What is asked.
    pub subject: Subject,
}

/// What a review is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    /// A Job is created.
    Create(Box<JobView>),
    /// A Job is changed.
    Update {
        /// As it will be.
        new: Box<JobView>,
        /// As it is stored.
        old: Box<JobView>,
    },
    /// Not ours to judge; says why.
    NotOurs(String),
    /// A Job that cannot be read; says why.
    Unreadable(String),
}

/// Bytes that are no review.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReviewError {
    /// Not JSON, or of another shape.
    #[error("expected an AdmissionReview ({API_VERSION}) as JSON: {0}")]
    Shape(String),
    /// JSON, but of another kind.
    #[error("expected kind AdmissionReview, found `{0}`")]
    Kind(String),
    /// A version that is not spoken.
    #[error(
        "expected apiVersion {API_VERSION}, found `{0}`: set admissionReviewVersions: [v1] in the webhook configuration"
    )]
    Version(String),
    /// A review without a request, for example an answer.
    #[error("the AdmissionReview has no request")]
    NoRequest,
    /// A request without a uid.
    #[error("the AdmissionReview's request has no uid")]
    NoUid,
}

/// Reads a review.
///
/// # Errors
/// Where there is nothing that could be answered by its uid.
pub fn parse(bytes: &[u8]) -> Result<Review, ReviewError> {
    // One pass where everything is as it should be; a second, tolerant one only to say what is wrong.
    match serde_json::from_slice::<Envelope<'_, JobView>>(bytes) {
        Ok(envelope) => {
            let request = envelope.into_request()?;
            if let Some(why) = request.not_ours() {
                return Ok(request.review(Subject::NotOurs(why)));
            }
            Ok(request.into_review())
        }
        Err(error) => {
            let why = short(&error.to_string());
            let envelope: Envelope<'_, IgnoredAny> =
                serde_json::from_slice(bytes).map_err(|e| ReviewError::Shape(short(&e.to_string())))?;
            let request = envelope.into_request()?;
            let subject = match request.not_ours() {
                Some(why) => Subject::NotOurs(why),
                None => Subject::Unreadable(format!("this Job cannot be read: {why}")),
            };
            Ok(request.review(subject))
        }
    }
}

// Texts are borrowed from the body where JSON escapes nothing in them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "O: Deserialize<'de>"))]
struct Envelope<'a, O> {
    #[serde(default, borrow)]
    api_version: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(default = "none", borrow)]
    request: Option<Request<'a, O>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "O: Deserialize<'de>"))]
struct Request<'a, O> {
    #[serde(default)]
    uid: String,
    #[serde(default, borrow)]
    kind: Gvk<'a>,
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
struct Gvk<'a> {
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

impl<'a, O> Envelope<'a, O> {
    fn into_request(self) -> Result<Request<'a, O>, ReviewError> {
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

impl<O> Request<'_, O> {
    fn not_ours(&self) -> Option<String> {
        let Gvk { group, version, kind } = &self.kind;
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

    fn review(self, subject: Subject) -> Review {
        Review {
            uid: self.uid,
            namespace: self.namespace,
            dry_run: self.dry_run.unwrap_or_default(),
            subject,
        }
    }
}

impl Request<'_, JobView> {
    /// After [`Self::not_ours`] found nothing.
    fn into_review(mut self) -> Review {
        let (object, old) = (self.object.take(), self.old_object.take());
        let create = self.operation == "CREATE";
        let fill = |mut job: JobView| {
            // The request says where it goes; an object may leave it out, never contradict it.
            job.snapshot.namespace.clone_from(&self.namespace);
            if job.snapshot.name.is_empty() {
                job.snapshot.name = self.name.to_string();
            }
            Box::new(job)
        };
        let subject = match (object, old) {
            (Some(job), _) if create => Subject::Create(fill(job.without_status())),
            (Some(new), Some(old)) => Subject::Update { new: fill(new), old: fill(old) },
            _ => Subject::NotOurs("a review of a Job came without the Job".to_owned()),
        };
        self.review(subject)
    }
}

/// Parser errors quote what they found, which may be megabytes.
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
    fn says_what_is_wrong(#[case] body: &str, #[case] expected: &str) {
        let error = parse(body.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn another_kind_is_not_ours() {
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
            assert!(matches!(review.subject, Subject::NotOurs(_)), "{request} -> {review:?}");
        }
    }

    #[test]
    fn a_job_that_cannot_be_read_says_why() {
        let huge = "x".repeat(1 << 20);
        let request =
            json!({"uid": "u", "kind": kind("Job"), "operation": "CREATE", "object": {"spec": huge}});
        let Subject::Unreadable(why) = parse(&review(request)).unwrap().subject else { panic!() };
        assert!(why.starts_with("this Job cannot be read: invalid type") && why.len() < 400, "{why}");
    }

    #[test]
    fn a_create_cannot_bring_a_status() {
        let request = json!({"uid": "u", "kind": kind("Job"), "operation": "CREATE", "namespace": "ci", "name": "a",
            "object": {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}});
        let Subject::Create(job) = parse(&review(request)).unwrap().subject else { panic!() };
        assert!(job.snapshot.is_active());
        assert_eq!(job.snapshot.key(), "ci/a");
    }

    proptest! {
        #[test]
        fn any_bytes_get_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _: Result<Review, ReviewError> = parse(&bytes);
        }

        /// Bytes of a real review, torn, swapped and overwritten.
        #[test]
        fn any_damage_gets_an_answer(at in 0usize..400, byte in any::<u8>(), cut in 0usize..400) {
            let request = json!({"uid": "u", "kind": kind("Job"), "operation": "UPDATE", "namespace": "ci", "name": "a",
                "object": {"metadata": {"labels": {"a": "b"}, "annotations": {"job-handler/stamped": "x"}},
                    "spec": {"backoffLimit": 6, "template": {"metadata": {}}}}, "oldObject": {"status": {"active": 1}}});
            let mut bytes = review(request);
            if let Some(place) = bytes.get_mut(at) { *place = byte; }
            let _: Result<Review, ReviewError> = parse(&bytes);
            bytes.truncate(cut);
            let _: Result<Review, ReviewError> = parse(&bytes);
        }
    }
}
