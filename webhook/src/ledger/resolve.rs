//! When an attempt may be removed from the ledger: its outcome was observed, or it can no longer have one. Pure.

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{AttemptKind, GrantedAttempt};

/// Where a view of the Jobs comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ViewSource {
    /// A consistent LIST that began after the ledger was read: it shows every write before that read.
    List,
    /// A watch cache whose last event had this resourceVersion.
    Cache(u64),
}

/// A Job in a view.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObservedJob {
    /// `namespace/name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub version: u64,
    /// Whether it takes slots.
    pub active: bool,
    /// The scopes in which it takes slots, by the observer's policies.
    pub scopes: Vec<String>,
    /// `metadata.creationTimestamp`.
    pub since: Timestamp,
}

/// What a view shows of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttemptOutcome {
    /// Nothing: the request may still be in progress.
    Unknown,
    /// The Job as of this resourceVersion. A decision without the attempt needs a view of at least this version.
    Observed(u64),
    /// The Job was deleted, and the attempt can no longer have an effect.
    Deleted,
}

impl ViewSource {
    /// Whether the view shows every write up to `version`. A ledger may be decided by only if the view covers its
    /// `observed_through`.
    pub fn covers(self, version: u64) -> bool {
        match self {
            Self::List => true,
            Self::Cache(position) => position >= version,
        }
    }
}

/// The outcome of an attempt, given the Job with its uid in the view.
pub(crate) fn outcome(
    granted: &GrantedAttempt,
    observed: Option<&ObservedJob>,
    view_source: ViewSource,
) -> AttemptOutcome {
    match (&granted.kind, observed) {
        (AttemptKind::Create, Some(job)) => AttemptOutcome::Observed(job.version),
        (AttemptKind::Create, None) => AttemptOutcome::Unknown,
        // The change is stored only onto `from`: a later version is either the change or a write that came before it.
        (AttemptKind::Unsuspend { from }, Some(job)) if job.version > *from => {
            AttemptOutcome::Observed(job.version)
        }
        (AttemptKind::Unsuspend { .. }, Some(_)) => AttemptOutcome::Unknown,
        // The Job existed at `from`, so a view of that version or later without it shows that it was deleted.
        (AttemptKind::Unsuspend { from }, None) if view_source.covers(*from) => AttemptOutcome::Deleted,
        (AttemptKind::Unsuspend { .. }, None) => AttemptOutcome::Unknown,
    }
}

/// Whether an expired attempt (no request lives that long) had no effect, given the resourceVersion of the Job with its
/// uid in a quorum read that began after the expiry.
///
/// An un-suspend that was denied after our admission leaves its Job at `from`.
pub fn had_no_effect(granted: &GrantedAttempt, stored: Option<u64>) -> bool {
    match (&granted.kind, stored) {
        (_, None) => true,
        (AttemptKind::Create, Some(_)) => false,
        (AttemptKind::Unsuspend { from }, Some(version)) => version <= *from,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn granted(kind: AttemptKind) -> GrantedAttempt {
        GrantedAttempt {
            job_uid: "u".into(),
            kind,
            revision: "r".into(),
            scopes: vec![],
            since: Timestamp::UNIX_EPOCH,
        }
    }

    fn observed(version: u64) -> ObservedJob {
        ObservedJob {
            name: "ci/a".into(),
            uid: "u".into(),
            version,
            active: true,
            scopes: vec![],
            since: Timestamp::UNIX_EPOCH,
        }
    }

    #[rstest]
    #[case::a_created_job(AttemptKind::Create, Some(9), ViewSource::Cache(9), AttemptOutcome::Observed(9))]
    #[case::a_create_in_progress(AttemptKind::Create, None, ViewSource::List, AttemptOutcome::Unknown)]
    #[case::an_unsuspend_in_progress(AttemptKind::Unsuspend { from: 5 }, Some(5), ViewSource::List, AttemptOutcome::Unknown)]
    #[case::a_newer_version(AttemptKind::Unsuspend { from: 5 }, Some(6), ViewSource::List, AttemptOutcome::Observed(6))]
    #[case::a_view_older_than_the_job(AttemptKind::Unsuspend { from: 5 }, Some(4), ViewSource::Cache(4), AttemptOutcome::Unknown)]
    #[case::deleted_before_a_list(AttemptKind::Unsuspend { from: 5 }, None, ViewSource::List, AttemptOutcome::Deleted)]
    #[case::deleted_before_the_cache_position(AttemptKind::Unsuspend { from: 5 }, None, ViewSource::Cache(5), AttemptOutcome::Deleted)]
    #[case::a_cache_that_is_too_old(AttemptKind::Unsuspend { from: 5 }, None, ViewSource::Cache(4), AttemptOutcome::Unknown)]
    fn outcomes(
        #[case] kind: AttemptKind,
        #[case] version: Option<u64>,
        #[case] view_source: ViewSource,
        #[case] expected: AttemptOutcome,
    ) {
        assert_eq!(outcome(&granted(kind), version.map(observed).as_ref(), view_source), expected);
    }

    #[test]
    fn an_expired_attempt_is_removed_only_if_it_had_no_effect() {
        assert!(had_no_effect(&granted(AttemptKind::Create), None));
        assert!(!had_no_effect(&granted(AttemptKind::Create), Some(1)));
        let change = granted(AttemptKind::Unsuspend { from: 5 });
        assert!(had_no_effect(&change, None) && had_no_effect(&change, Some(5)));
        assert!(!had_no_effect(&change, Some(6)));
    }
}
