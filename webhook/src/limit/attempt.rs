//! An attempt, the verdict about it, and the interface of a limiter.

use std::{collections::BTreeMap, time::Instant};

use futures::future::BoxFuture;
use job_handler_shared::{job::snapshot::JobSnapshot, policy::reference::PolicyRef};

/// An attempt to make a Job active: a create, an un-suspend, or a change of labels that brings it under another limit.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// `request.uid`.
    pub uid: String,
    /// The Job as it would be stored.
    pub job: JobSnapshot,
    /// The stored Job's resourceVersion; `None` for a create.
    pub from: Option<String>,
    /// Whether the request is a dry run, which neither takes a slot nor has any other effect.
    pub dry_run: bool,
    /// Whether to take no slot yet: another ledger is asked before.
    pub probe: bool,
    /// When the caller gives up.
    pub answer_by: Instant,
}

impl Attempt {
    /// Whether a grant is recorded.
    pub(crate) fn takes_slot(&self) -> bool {
        !self.dry_run && !self.probe
    }
}

/// The answer to an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The Job may become active.
    Granted,
    /// It may not, because of a limit or failure backoff.
    Refused(Refused),
    /// The decision cannot be made now.
    Unavailable {
        /// An explanation for the author.
        why: String,
        /// When the author may try again.
        retry_after_seconds: u32,
    },
    /// Earlier admitted Jobs of the namespace hold slots and were never stored.
    TooMany {
        /// An explanation for the author.
        why: String,
        /// When the author may try again.
        retry_after_seconds: u32,
    },
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The policy that caused it.
    pub policy: PolicyRef,
    /// The name of its limit, or [`FAILURE_BACKOFF`].
    pub limit: String,
    /// The message for the author.
    pub message: String,
    /// Audit annotations.
    pub audit: BTreeMap<String, String>,
}

/// The limit name of refusals for failure backoff.
pub(crate) const FAILURE_BACKOFF: &str = "failureBackoff";

/// Decides about attempts.
pub trait Limiter: Send + Sync {
    /// Decides about an attempt. Dropping the future revokes the grant.
    fn admit(&self, attempt: Attempt) -> BoxFuture<'_, Verdict>;
}
