//! The record of a refusal that the webhook sends to the sink of its pod, one JSON object per line. The webhook never writes
//! Events itself.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    job::snapshot::{JobSnapshot, Owner},
    policy::reference::PolicyRef,
};

/// Maximum length of a line in bytes; the sink drops and counts longer ones.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// A Job that was refused or queued, or would have been (mode Warn).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// Whether the Job was refused or queued, or would have been.
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

impl Refusal {
    /// A decision about a Job that was made now. `stored` is [`Self::stored`].
    pub fn of_job(
        job: &JobSnapshot,
        decision: RefusalKind,
        stored: bool,
        policy: &PolicyRef,
        limit: &str,
        message: &str,
    ) -> Self {
        Self {
            decision,
            policy: policy.clone(),
            limit: limit.to_owned(),
            namespace: job.namespace.clone(),
            job: job.name.clone(),
            uid: job.uid.clone(),
            stored,
            owner: job.owner.clone(),
            message: message.to_owned(),
            at: Timestamp::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::refusals::refusal;

    #[test]
    fn a_record_round_trips_as_one_line() {
        let message = "concurrent job limit reached:\n10".to_owned();
        let refusal = Refusal { message, ..refusal("build-11") };
        let line = serde_json::to_string(&refusal).unwrap();
        assert!(!line.contains('\n') && line.len() < MAX_LINE_BYTES);
        assert_eq!(serde_json::from_str::<Refusal>(&line).unwrap(), refusal);
    }
}
