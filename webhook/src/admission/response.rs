//! The answer: `AdmissionReview` with a response, or plain text where there is nothing to answer by uid.
//!
//! Our own envelope: kube's writes the patch as an array of integers (kube#1781) and knows no status code.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use json_patch::PatchOperation;
use serde::Serialize;

use crate::admission::review::API_VERSION;

/// The longest warning a client shows in full; the apiserver cuts all of them at 4,096 characters together.
const WARNING_MAX: usize = 256;
/// Bytes of a typical patch, and of a typical answer without its patch; a longer one only has to grow.
const TYPICAL: usize = 1024;

/// What is sent back over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// `content-type`.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Why it is denied; none = allowed.
    pub denied: Option<Denial>,
    /// Changes to the object.
    pub patch: Vec<PatchOperation>,
    /// Shown to the author by clients.
    pub warnings: Vec<String>,
    /// Kept in the apiserver's audit log, under keys prefixed by the webhook's name.
    pub audit: BTreeMap<String, String>,
}

/// Why a request is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// HTTP status that the client gets.
    pub code: u16,
    /// `metav1.StatusReason`.
    pub reason: &'static str,
    /// For people; passed on behind `admission webhook "…" denied the request: `.
    pub message: String,
    /// When clients should try again (client-go does, with 429 and 5xx).
    pub retry_after_seconds: Option<u32>,
}

impl Denial {
    /// A limit is full: 403.
    pub fn forbidden(message: String) -> Self {
        Self { code: 403, reason: "Forbidden", message, retry_after_seconds: None }
    }

    /// It cannot be judged: 400.
    pub fn bad_request(message: String) -> Self {
        Self { code: 400, reason: "BadRequest", message, retry_after_seconds: None }
    }

    /// Its author has to slow down: 429.
    pub fn too_many(message: String, retry_after_seconds: u32) -> Self {
        let retry_after_seconds = Some(retry_after_seconds);
        Self { code: 429, reason: "TooManyRequests", message, retry_after_seconds }
    }

    /// It cannot be judged now: 503.
    pub fn unavailable(message: String, retry_after_seconds: u32) -> Self {
        let retry_after_seconds = Some(retry_after_seconds);
        Self { code: 503, reason: "ServiceUnavailable", message, retry_after_seconds }
    }
}

impl Reply {
    /// A plain text.
    pub fn text(status: u16, text: impl Into<String>) -> Self {
        let mut body: String = text.into();
        body.push('\n');
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into_bytes() }
    }

    /// A JSON document.
    pub fn json(body: Vec<u8>) -> Self {
        Self { status: 200, content_type: "application/json", body }
    }
}

impl Answer {
    /// Allowed, with a warning.
    pub fn warned(warning: String) -> Self {
        Self { warnings: vec![warning], ..Self::default() }
    }

    /// Denied.
    pub fn denied(denial: Denial) -> Self {
        Self { denied: Some(denial), ..Self::default() }
    }

    /// As bytes, to the request with this uid.
    pub fn reply(&self, uid: &str) -> Reply {
        match self.encode(uid) {
            Ok(body) => Reply::json(body),
            // Strings and numbers only: it cannot fail, but an answer is due in any case.
            Err(error) => Reply::text(500, format!("the answer cannot be written: {error}")),
        }
    }

    fn encode(&self, uid: &str) -> serde_json::Result<Vec<u8>> {
        let patch = match self.patch.is_empty() {
            true => Vec::new(),
            false => {
                let mut patch = Vec::with_capacity(TYPICAL);
                serde_json::to_writer(&mut patch, &self.patch)?;
                patch
            }
        };
        let mut body = Vec::with_capacity(TYPICAL + patch.len() * 4 / 3);
        serde_json::to_writer(
            &mut body,
            &Envelope {
                api_version: API_VERSION,
                kind: "AdmissionReview",
                response: Response {
                    uid,
                    allowed: self.denied.is_none(),
                    status: self.denied.as_ref().map(|denial| Status {
                        code: denial.code,
                        reason: denial.reason,
                        status: "Failure",
                        message: &denial.message,
                        details: denial
                            .retry_after_seconds
                            .map(|retry_after_seconds| Details { retry_after_seconds }),
                    }),
                    warnings: self.warnings.iter().map(|warning| cut(warning)).collect(),
                    audit_annotations: &self.audit,
                },
            },
        )?;
        if !patch.is_empty() {
            append_patch(&mut body, &patch);
        }
        Ok(body)
    }
}

/// Puts the patch in as the response's last field. By hand, because serde would look at each character of the base64,
/// the larger part of the answer, for something to escape.
fn append_patch(body: &mut Vec<u8>, patch: &[u8]) {
    const CLOSING: usize = "}}".len();
    body.truncate(body.len().saturating_sub(CLOSING));
    body.extend_from_slice(br#","patchType":"JSONPatch","patch":""#);
    body.extend_from_slice(STANDARD.encode(patch).as_bytes());
    body.extend_from_slice(br#""}}"#);
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Status<'a> {
    code: u16,
    reason: &'static str,
    status: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    retry_after_seconds: u32,
}

fn cut(text: &str) -> &str {
    match text.char_indices().nth(WARNING_MAX) {
        Some((end, _)) => text.get(..end).unwrap_or_default(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn value(answer: &Answer) -> Value {
        serde_json::from_slice(&answer.reply("u-1").body).unwrap()
    }

    #[test]
    fn an_empty_answer_allows_and_says_nothing_more() {
        insta::assert_json_snapshot!(value(&Answer::default()), @r#"
        {
          "apiVersion": "admission.k8s.io/v1",
          "kind": "AdmissionReview",
          "response": {
            "allowed": true,
            "uid": "u-1"
          }
        }
        "#);
    }

    #[test]
    fn the_patch_is_base64_of_a_json_patch() {
        let ops = serde_json::from_str(r#"[{"op":"add","path":"/spec/suspend","value":true}]"#).unwrap();
        let answer = value(&Answer { patch: ops, ..Answer::default() });
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        let patch = STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
        assert_eq!(patch, br#"[{"op":"add","path":"/spec/suspend","value":true}]"#);
    }

    #[test]
    fn a_denial_carries_code_reason_and_when_to_retry() {
        let answer = value(&Answer::denied(Denial::unavailable("away".into(), 2)));
        assert_eq!(answer["response"]["allowed"], false);
        let status = &answer["response"]["status"];
        assert_eq!((&status["code"], &status["reason"]), (&503.into(), &"ServiceUnavailable".into()));
        assert_eq!(status["details"]["retryAfterSeconds"], 2);
        let forbidden = value(&Answer::denied(Denial::forbidden("full".into())));
        assert_eq!(forbidden["response"]["status"]["code"], 403);
        assert!(forbidden["response"]["status"].get("details").is_none());
    }

    #[test]
    fn long_warnings_are_cut_between_characters() {
        let answer = value(&Answer::warned("ä".repeat(1000)));
        assert_eq!(answer["response"]["warnings"][0].as_str().unwrap().chars().count(), WARNING_MAX);
    }
}
