//! An attempt, the verdict about it, and the interface of a limiter.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use futures::future::BoxFuture;
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    policy::{label_keys::LabelKeys, reference::PolicyRef},
};

/// An attempt to make a Job active: a create, an un-suspend, or a change of labels that brings it under another limit. Also
/// a change by which a Job with running pods stops to count.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// `request.uid`.
    pub uid: String,
    /// The Job as it would be stored.
    pub job: JobSnapshot,
    /// The stored Job's resourceVersion; `None` for a create.
    pub from: Option<String>,
    /// What becomes of slots that the stored Job holds.
    pub earlier_slots: EarlierSlots,
    /// Whether the request is a dry run, which neither takes a slot nor has any other effect.
    pub dry_run: bool,
    /// Whether to take no slot yet: another ledger is asked before.
    pub probe: bool,
    /// When the caller gives up.
    pub answer_by: Instant,
}

/// What becomes of slots that a stored Job holds, by an attempt to change it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum EarlierSlots {
    /// It holds none, or those that it will hold anyway.
    #[default]
    Nothing,
    /// The Job, here as it is stored, runs on while its labels or owner take it out of them: they stay held.
    Left(Box<JobSnapshot>),
    /// The Job goes away and leaves its pods: they hold its slots, and the Job takes no further ones.
    Orphaned,
}

impl Attempt {
    /// Whether a grant is recorded.
    pub(crate) fn takes_slot(&self) -> bool {
        !self.dry_run && !self.probe
    }

    /// Whether the attempt can be judged by the labels that were kept of its Job.
    pub(crate) fn knows_labels(&self, keys: &Arc<LabelKeys>) -> bool {
        let knows_earlier = match &self.earlier_slots {
            EarlierSlots::Left(stored) => stored.knows_labels(keys),
            EarlierSlots::Nothing | EarlierSlots::Orphaned => true,
        };
        self.job.knows_labels(keys) && knows_earlier
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
