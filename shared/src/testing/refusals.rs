//! Refusals.

use jiff::Timestamp;

use crate::{
    ledger::refusal::{Refusal, RefusalKind},
    policy::reference::{PolicyKind, PolicyRef},
};

/// A refusal of the create of Job `ci/<job>` by JobPolicy `ci/builds`.
pub fn refusal(job: &str) -> Refusal {
    Refusal {
        decision: RefusalKind::Refused,
        policy: PolicyRef {
            kind: PolicyKind::JobPolicy,
            namespace: Some("ci".into()),
            name: "builds".into(),
            uid: "p".into(),
        },
        limit: "concurrent-builds".into(),
        namespace: "ci".into(),
        job: job.into(),
        uid: format!("uid-{job}"),
        stored: false,
        owner: None,
        message: "concurrent job limit reached".into(),
        at: Timestamp::UNIX_EPOCH,
    }
}
