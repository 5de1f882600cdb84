//! Encodes responses: an `AdmissionReview`, or plain text if the request has no uid to refer to.
//!
//! kube's type is not used, because it encodes the patch as an array of integers (kube#1781) and has no status code.

use std::{borrow::Cow, collections::BTreeMap};

use base64::{Engine, engine::general_purpose::STANDARD};
use job_handler_shared::text::escape_unsafe;
use json_patch::PatchOperation;
use serde::Serialize;

use crate::admission::review::API_VERSION;

/// Longest warning that clients show in full. The apiserver cuts all warnings together at 4,096 characters.
const MAX_WARNING_CHARS: usize = 256;
/// Initial capacity in bytes for a patch, and for a response without its patch.
const INITIAL_CAPACITY: usize = 1024;

/// An HTTP response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpReply {
    /// HTTP status.
    pub status: u16,
    /// Header `content-type`.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
}

/// The response of an AdmissionReview.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct AdmissionResponse {
    /// None: allowed.
    pub(super) denied: Option<Denial>,
    /// Changes to the object.
    pub(super) patch: Vec<PatchOperation>,
    /// Clients show them to their users.
    pub(super) warnings: Vec<String>,
    /// Annotations of the audit event. The apiserver prefixes their keys with the webhook's name.
    pub(super) audit: BTreeMap<String, String>,
}

/// Why a request is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Denial {
    /// HTTP status for the client.
    code: u16,
    /// `metav1.StatusReason`.
    reason: &'static str,
    /// Clients see it after `admission webhook "…" denied the request: `.
    message: String,
    /// When clients should retry. client-go does so for 429 and 5xx.
    retry_after_seconds: Option<u32>,
}

impl Denial {
    /// 403: a limit is full.
    pub(super) fn forbidden(message: String) -> Self {
        Self { code: 403, reason: "Forbidden", message, retry_after_seconds: None }
    }

    /// 400: the object cannot be read.
    pub(super) fn bad_request(message: String) -> Self {
        Self { code: 400, reason: "BadRequest", message, retry_after_seconds: None }
    }

    /// 429: the client has to slow down.
    pub(super) fn too_many(message: String, retry_after_seconds: u32) -> Self {
        let retry_after_seconds = Some(retry_after_seconds);
        Self { code: 429, reason: "TooManyRequests", message, retry_after_seconds }
    }

    /// 503: the request cannot be decided now.
    pub(super) fn unavailable(message: String, retry_after_seconds: u32) -> Self {
        let retry_after_seconds = Some(retry_after_seconds);
        Self { code: 503, reason: "ServiceUnavailable", message, retry_after_seconds }
    }
}

impl HttpReply {
    /// Plain text, which may quote the request.
    pub fn text(status: u16, text: impl AsRef<str>) -> Self {
        let mut body = escape_unsafe(text.as_ref()).into_owned();
        body.push('\n');
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into_bytes() }
    }

    /// A JSON document.
    pub fn json(body: Vec<u8>) -> Self {
        Self { status: 200, content_type: "application/json", body }
    }
}

impl AdmissionResponse {
    /// Allowed, with a warning.
    pub(super) fn warned(warning: String) -> Self {
        Self { warnings: vec![warning], ..Self::default() }
    }

    pub(super) fn denied(denial: Denial) -> Self {
        Self { denied: Some(denial), ..Self::default() }
    }

    /// Encodes the response to the request `uid`.
    pub(super) fn reply(&self, uid: &str) -> HttpReply {
        match self.encode(uid) {
            Ok(body) => HttpReply::json(body),
            // Strings and numbers can always be encoded.
            Err(error) => HttpReply::text(500, format!("cannot encode the response: {error}")),
        }
    }

    fn encode(&self, uid: &str) -> serde_json::Result<Vec<u8>> {
        let patch = match self.patch.is_empty() {
            true => Vec::new(),
            false => {
                let mut patch = Vec::with_capacity(INITIAL_CAPACITY);
                serde_json::to_writer(&mut patch, &self.patch)?;
                patch
            }
        };
        let mut body = Vec::with_capacity(INITIAL_CAPACITY + patch.len() * 4 / 3);
        serde_json::to_writer(
            &mut body,
            &WireReview {
                api_version: API_VERSION,
                kind: "AdmissionReview",
                response: WireResponse {
                    uid,
                    allowed: self.denied.is_none(),
                    status: self.denied.as_ref().map(|denial| WireStatus {
                        code: denial.code,
                        reason: denial.reason,
                        status: "Failure",
                        message: escape_unsafe(&denial.message),
                        details: denial
                            .retry_after_seconds
                            .map(|retry_after_seconds| WireDetails { retry_after_seconds }),
                    }),
                    warnings: self
                        .warnings
                        .iter()
                        .map(|warning| escape_unsafe(first_warning_chars(warning)))
                        .collect(),
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

/// Appends the patch as the response's last field. serde would check every base64 character for escaping, and base64 is
/// most of the response.
fn append_patch(body: &mut Vec<u8>, patch: &[u8]) {
    const CLOSING: usize = "}}".len();
    body.truncate(body.len().saturating_sub(CLOSING));
    body.extend_from_slice(br#","patchType":"JSONPatch","patch":""#);
    body.extend_from_slice(STANDARD.encode(patch).as_bytes());
    body.extend_from_slice(br#""}}"#);
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireReview<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: WireResponse<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireResponse<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<WireStatus<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Cow<'a, str>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct WireStatus<'a> {
    code: u16,
    reason: &'static str,
    status: &'static str,
    message: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<WireDetails>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireDetails {
    retry_after_seconds: u32,
}

/// The first [`MAX_WARNING_CHARS`] characters of a warning, without a mark: the limit of clients counts characters, not
/// bytes, and a mark would take one of them.
fn first_warning_chars(text: &str) -> &str {
    match text.char_indices().nth(MAX_WARNING_CHARS) {
        Some((end, _)) => text.get(..end).unwrap_or_default(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn value(response: &AdmissionResponse) -> Value {
        serde_json::from_slice(&response.reply("u-1").body).unwrap()
    }

    #[test]
    fn an_empty_response_only_allows() {
        insta::assert_json_snapshot!(value(&AdmissionResponse::default()), @r#"
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
        let response = value(&AdmissionResponse { patch: ops, ..AdmissionResponse::default() });
        assert_eq!(response["response"]["patchType"], "JSONPatch");
        let patch = STANDARD.decode(response["response"]["patch"].as_str().unwrap()).unwrap();
        assert_eq!(patch, br#"[{"op":"add","path":"/spec/suspend","value":true}]"#);
    }

    #[test]
    fn a_denial_has_code_reason_and_retry_time() {
        let response = value(&AdmissionResponse::denied(Denial::unavailable("away".into(), 2)));
        assert_eq!(response["response"]["allowed"], false);
        let status = &response["response"]["status"];
        assert_eq!((&status["code"], &status["reason"]), (&503.into(), &"ServiceUnavailable".into()));
        assert_eq!(status["details"]["retryAfterSeconds"], 2);
        let forbidden = value(&AdmissionResponse::denied(Denial::forbidden("full".into())));
        assert_eq!(forbidden["response"]["status"]["code"], 403);
        assert!(forbidden["response"]["status"].get("details").is_none());
    }

    #[test]
    fn what_a_job_says_does_not_drive_the_terminal_of_its_author() {
        let text = "job a\u{1b}[2J\u{202e}".to_owned();
        let denied = value(&AdmissionResponse::denied(Denial::forbidden(text.clone())));
        let warned = value(&AdmissionResponse::warned(text.clone()));
        let escaped = "job a\\u001b[2J\\u202e";
        assert_eq!(denied["response"]["status"]["message"], escaped);
        assert_eq!(warned["response"]["warnings"][0], escaped);
        assert_eq!(HttpReply::text(400, &text).body, format!("{escaped}\n").into_bytes());
    }

    #[test]
    fn long_warnings_are_truncated_at_a_character_boundary() {
        let response = value(&AdmissionResponse::warned("ä".repeat(1000)));
        assert_eq!(response["response"]["warnings"][0].as_str().unwrap().chars().count(), MAX_WARNING_CHARS);
    }
}
