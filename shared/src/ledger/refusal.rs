//! The record of a refusal that travels from the webhook over the local socket to the sink.
//!
//! One JSON object per line. The webhook never writes Events itself; the sink beside it does.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{job::snapshot::Owner, policy::reference::PolicyRef};

/// Longest line the sink reads, bytes; a longer one is dropped and counted.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// A Job that was refused, queued, or (mode Warn) would have been.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// What was decided.
    pub decision: RefusalKind,
    /// The policy whose limit or backoff decided.
    pub policy: PolicyRef,
    /// Name of the limit; `failureBackoff` for that.
    pub limit: String,
    /// Namespace of the Job.
    pub namespace: String,
    /// Name of the Job (validating admission knows generated names too).
    pub job: String,
    /// Its uid; each try of a create has one of its own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The Job is there: it was queued, or a change of it was refused.
    #[serde(default)]
    pub stored: bool,
    /// Its controlling owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// The text its author got.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// How the text begins where a limit is full.
pub const LIMIT_REACHED: &str = "concurrent job limit reached";
/// How the text begins where a limit of one per group is full.
pub const DUPLICATE_JOB: &str = "duplicate job";
/// How the text begins where a group waits after failures.
pub const IN_BACKOFF: &str = "failure backoff";

/// What was decided about a Job over a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum RefusalKind {
    /// Its creation was refused.
    Refused,
    /// It was created suspended.
    Queued,
    /// Mode Warn: it was let through, and would have been refused.
    WouldRefuse,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::reference::PolicyKind;

    #[test]
    fn a_line_survives_the_socket() {
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
