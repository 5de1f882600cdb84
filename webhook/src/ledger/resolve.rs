//! When an attempt may be taken out of the ledger: its outcome was seen, or it can have none any more. Pure.

use jiff::Timestamp;
use job_handler_shared::ledger::crd::{AttemptKind, GrantedAttempt};

/// How a view of the Jobs was had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ViewSource {
    /// A consistent LIST that began after the ledger was read: it shows everything that was written before the read.
    List,
    /// A watch cache whose last event had this resourceVersion.
    Cache(u64),
}

/// A Job of a view.
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
    /// Where, by the policies of whoever looks.
    pub scopes: Vec<String>,
    /// `metadata.creationTimestamp`.
    pub since: Timestamp,
}

/// What a view shows of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// Nothing: it may still be on its way.
    Unknown,
    /// The Job as of this resourceVersion. Whoever decides without the attempt has to see at least that.
    Observed(u64),
    /// The Job is gone for ever, and the attempt can do nothing any more.
    Deleted,
}

impl ViewSource {
    /// Whether a ledger may be decided by, from which attempts were taken out because of Jobs seen up to
    /// `observed_through`.
    pub fn covers(self, observed_through: u64) -> bool {
        self.reaches(observed_through)
    }

    fn reaches(self, version: u64) -> bool {
        match self {
            Self::List => true,
            Self::Cache(position) => position >= version,
        }
    }
}

/// What became of an attempt, given the Job with its uid in the view.
pub fn outcome(
    granted: &GrantedAttempt,
    seen: Option<&ObservedJob>,
    view_source: ViewSource,
) -> AttemptOutcome {
    match (&granted.kind, seen) {
        (AttemptKind::Create, Some(job)) => AttemptOutcome::Observed(job.version),
        (AttemptKind::Create, None) => AttemptOutcome::Unknown,
        // The change is written only onto `from`: whatever came after is either the change, or has taken its place.
        (AttemptKind::Unsuspend { from }, Some(job)) if job.version > *from => {
            AttemptOutcome::Observed(job.version)
        }
        (AttemptKind::Unsuspend { .. }, Some(_)) => AttemptOutcome::Unknown,
        // It was there at `from`, so a view that reaches that far and shows no such Job shows that it was deleted.
        (AttemptKind::Unsuspend { from }, None) if view_source.reaches(*from) => AttemptOutcome::Deleted,
        (AttemptKind::Unsuspend { .. }, None) => AttemptOutcome::Unknown,
    }
}

/// Whether an attempt that has run out (no request lives that long) came to nothing, given the resourceVersion of the Job
/// with its uid in a quorum read that began after it had run out.
///
/// An un-suspend that was denied after us leaves its Job as it was, at `from`.
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

    fn seen(version: u64) -> ObservedJob {
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
    #[case::a_created_job_in_whatever_state(
        AttemptKind::Create,
        Some(9),
        ViewSource::Cache(9),
        AttemptOutcome::Observed(9)
    )]
    #[case::a_create_on_its_way(AttemptKind::Create, None, ViewSource::List, AttemptOutcome::Unknown)]
    #[case::not_changed_yet(AttemptKind::Unsuspend { from: 5 }, Some(5), ViewSource::List, AttemptOutcome::Unknown)]
    #[case::changed(AttemptKind::Unsuspend { from: 5 }, Some(6), ViewSource::List, AttemptOutcome::Observed(6))]
    #[case::an_old_view(AttemptKind::Unsuspend { from: 5 }, Some(4), ViewSource::Cache(4), AttemptOutcome::Unknown)]
    #[case::deleted(AttemptKind::Unsuspend { from: 5 }, None, ViewSource::List, AttemptOutcome::Deleted)]
    #[case::deleted_in_the_cache(AttemptKind::Unsuspend { from: 5 }, None, ViewSource::Cache(5), AttemptOutcome::Deleted)]
    #[case::not_in_the_cache_yet(AttemptKind::Unsuspend { from: 5 }, None, ViewSource::Cache(4), AttemptOutcome::Unknown)]
    fn outcomes(
        #[case] kind: AttemptKind,
        #[case] version: Option<u64>,
        #[case] view_source: ViewSource,
        #[case] expected: AttemptOutcome,
    ) {
        assert_eq!(outcome(&granted(kind), version.map(seen).as_ref(), view_source), expected);
    }

    #[test]
    fn what_ran_out_goes_only_where_nothing_came_of_it() {
        assert!(had_no_effect(&granted(AttemptKind::Create), None));
        assert!(!had_no_effect(&granted(AttemptKind::Create), Some(1)));
        let change = granted(AttemptKind::Unsuspend { from: 5 });
        assert!(had_no_effect(&change, None) && had_no_effect(&change, Some(5)));
        assert!(!had_no_effect(&change, Some(6)));
    }
}
