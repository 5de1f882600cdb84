//! The record of a refusal that the webhook sends to the sink of its pod, one JSON object per line. The webhook never writes
//! Events itself.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    job::snapshot::{JobSnapshot, Owner},
    names::is_object_name,
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

/// A line that is not a refusal.
#[derive(Debug, thiserror::Error)]
pub enum RefusalLineError {
    /// It is not the JSON of a refusal.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A field is not the name of an object.
    #[error("`{0}` is not a name that the apiserver accepts")]
    Name(&'static str),
}

impl Refusal {
    /// Parses a line. The names come from reviews that anybody may have sent, and end in the paths of calls to the
    /// apiserver: a line with a name that no object can have is an error, and an owner with such a name is dropped.
    ///
    /// # Errors
    /// If the line is not JSON of this type, or a name cannot exist.
    pub fn parse(line: &[u8]) -> Result<Self, RefusalLineError> {
        let mut refusal: Self = serde_json::from_slice(line)?;
        let names = [
            ("namespace", Some(&refusal.namespace)),
            // Empty: generated, and not known.
            ("job", Some(&refusal.job).filter(|name| !name.is_empty())),
            ("policy.name", Some(&refusal.policy.name)),
            ("policy.namespace", refusal.policy.namespace.as_ref()),
        ];
        let wrong = names.into_iter().find(|(_, name)| name.is_some_and(|name| !is_object_name(name)));
        if let Some((field, _)) = wrong {
            return Err(RefusalLineError::Name(field));
        }
        refusal.owner = refusal.owner.filter(|owner| is_object_name(&owner.name));
        Ok(refusal)
    }

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
        assert_eq!(Refusal::parse(line.as_bytes()).unwrap(), refusal);
    }

    #[test]
    fn names_that_no_object_can_have_are_rejected() {
        let parse = |refusal: &Refusal| Refusal::parse(&serde_json::to_vec(refusal).unwrap());
        let good = refusal("build-11");
        let slash = || "x/events/y?z=".to_owned();
        let mut policy = good.clone();
        policy.policy.name = slash();
        for (bad, field) in [
            (Refusal { namespace: slash(), ..good.clone() }, "`namespace`"),
            (Refusal { job: slash(), ..good.clone() }, "`job`"),
            (policy, "`policy.name`"),
        ] {
            let error = parse(&bad).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        assert!(parse(&Refusal { job: String::new(), ..good.clone() }).is_ok(), "a generated name");
        let owner = Owner { name: slash(), ..Owner::default() };
        assert_eq!(parse(&Refusal { owner: Some(owner), ..good }).unwrap().owner, None);
    }
}
