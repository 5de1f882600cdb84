//! The question that `/validate` asks, and its answers.

pub mod failure_backoff;
pub mod message;
pub mod scopes;
use std::{collections::BTreeMap, time::Instant};

use futures::future::BoxFuture;
use job_handler_shared::{job::snapshot::JobSnapshot, policy::reference::PolicyRef};

/// One try to make a Job active: a create, an un-suspend, or a change of labels that brings it under another limit.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// `request.uid`.
    pub uid: String,
    /// The Job as it will be.
    pub job: JobSnapshot,
    /// For a change: resourceVersion of the Job as it is stored. None = a create.
    pub from: Option<String>,
    /// Decide, but record nothing.
    pub dry_run: bool,
    /// An answer after this reaches nobody.
    pub answer_by: Instant,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on.
    Granted,
    /// It may not.
    Refused(Refused),
    /// It cannot be decided now.
    Unavailable {
        /// Why, for people.
        why: String,
        /// When to try again.
        retry_after_seconds: u32,
    },
    /// Its author's creates hold slots and come to nothing: it has to wait.
    TooMany {
        /// Why, for people.
        why: String,
        /// When to try again.
        retry_after_seconds: u32,
    },
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The policy that decided.
    pub policy: PolicyRef,
    /// Name of its limit, or [`FAILURE_BACKOFF`].
    pub limit: String,
    /// For the author.
    pub message: String,
    /// For the audit log.
    pub audit: BTreeMap<String, String>,
}

/// Stands for the limit's name where a group waits after failures.
pub const FAILURE_BACKOFF: &str = "failureBackoff";

/// Whoever decides about attempts.
pub trait Limiter: Send + Sync {
    /// Decides. Dropping the future gives the grant back where it was not answered yet.
    fn admit(&self, attempt: Attempt) -> BoxFuture<'_, Verdict>;
}
