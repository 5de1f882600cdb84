//! The record of a refusal that the webhook sends to the sink of its pod, one JSON object per line. The webhook never writes
//! Events itself.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{job::snapshot::Owner, policy::reference::PolicyRef};

/// Maximum length of a line in bytes; the sink drops and counts longer ones.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// A Job that was refused or queued, or would have been (mode Warn).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Decision.
    pub decision: RefusalKind,
    /// Policy whose limit or backoff decided.
    pub policy: PolicyRef,
    /// Name of the limit, or `failureBackoff`.
    pub limit: String,
    /// Namespace of the Job.
    pub namespace: String,
    /// Name of the Job. Validating admission knows generated names too.
    pub job: String,
    /// Uid of the Job; each attempt to create it has another one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Whether the Job exists: it was queued, or a change of it was refused.
    #[serde(default)]
    pub stored: bool,
    /// Controlling owner of the Job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Message that the author received.
    pub message: String,
    /// Time of the decision.
    pub at: Timestamp,
}

/// First words of the message if a limit is reached.
pub const LIMIT_REACHED: &str = "concurrent job limit reached";
/// First words of the message if a limit of one Job per group is reached.
pub const DUPLICATE_JOB: &str = "duplicate job";
/// First words of the message if a group waits after failures.
pub const IN_BACKOFF: &str = "failure backoff";

/// Decision about a Job over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum RefusalKind {
    /// The Job was refused.
    Refused,
    /// The Job was created suspended.
    Queued,
    /// Mode Warn: the Job was admitted, but would have been refused or queued.
    WouldRefuse,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::reference::PolicyKind;

    #[test]
    fn a_record_round_trips_as_one_line() {
        let refusal = Refusal {
            decision: RefusalKind::Refused,
            policy: PolicyRef {
                kind: PolicyKind::JobPolicy,
                namespace: Some("ci".into()),
                name: "builds".into(),
                uid: "u".into(),
            },
            limit: "concurrent-builds".into(),
            namespace: "ci".into(),
            job: "build-11".into(),
            uid: "j".into(),
            stored: false,
            owner: None,
            message: "concurrent job limit reached:\n10".into(),
            at: Timestamp::UNIX_EPOCH,
        };
        let line = serde_json::to_string(&refusal).unwrap();
        assert!(!line.contains('\n') && line.len() < MAX_LINE_BYTES);
        assert_eq!(serde_json::from_str::<Refusal>(&line).unwrap(), refusal);
    }
}
