//! Deleted Jobs, remembered for a while. A Job that was created and deleted between two rounds is in no view, and its
//! attempt would hold a slot until it expires.
//!
//! Why a tombstone resolves an attempt: a uid is given to one create only and never comes back, so a Job that was
//! observed and then deleted takes no slot at any later moment. The attempt is resolved at the resourceVersion of the
//! deletion, which the DELETED event carries, just as it would be at the version of a Job in the view. A decision by the
//! ledger without the attempt needs a view of at least that version, in which the Job is gone. A view that is older than
//! the deletion ignores the tombstone, since it may still show the Job.
//!
//! Jobs that were created and deleted between a watch that broke with a 410 and the list that followed leave no
//! tombstone: their attempts expire.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use job_handler_shared::job::snapshot::JobSnapshot;

/// Longer than attempts live, so that no attempt asks for a tombstone after it was dropped.
const TTL: Duration = Duration::from_secs(90);
/// About 2 MiB. Beyond it the oldest are evicted, and their attempts expire.
const CAPACITY: usize = 10_000;

/// A deleted Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobTombstone {
    /// `namespace/name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// resourceVersion of the deletion; if only a list revealed it, the last one that the Job was seen with.
    pub version: u64,
}

/// Tombstones by uid.
#[derive(Debug, Default)]
pub struct JobTombstones {
    by_uid: HashMap<String, JobTombstone>,
    order: VecDeque<(Instant, String)>,
}

impl JobTombstones {
    /// Records the deletion of a Job.
    pub(crate) fn insert(&mut self, job: &JobSnapshot, version: u64, now: Instant) {
        let tombstone = JobTombstone { name: job.key(), uid: job.uid.clone(), version };
        if self.by_uid.insert(job.uid.clone(), tombstone).is_none() {
            self.order.push_back((now, job.uid.clone()));
        }
        let has_expired = |at: Instant| now.saturating_duration_since(at) > TTL;
        while self.order.len() > CAPACITY || self.order.front().is_some_and(|(at, _)| has_expired(*at)) {
            if let Some((_, uid)) = self.order.pop_front() {
                self.by_uid.remove(&uid);
            }
        }
    }

    /// The tombstones of these uids that are no newer than `until`.
    pub(crate) fn find<'a>(&self, uids: impl IntoIterator<Item = &'a str>, until: u64) -> Vec<JobTombstone> {
        let tombstones = uids.into_iter().filter_map(|uid| self.by_uid.get(uid));
        tombstones.filter(|tombstone| tombstone.version <= until).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(uid: &str) -> JobSnapshot {
        JobSnapshot { namespace: "ci".into(), name: "a".into(), uid: uid.into(), ..JobSnapshot::default() }
    }

    #[test]
    fn a_tombstone_is_found_by_views_that_cover_it() {
        let mut tombstones = JobTombstones::default();
        tombstones.insert(&job("1"), 7, Instant::now());
        assert!(tombstones.find(["1"], 6).is_empty() && tombstones.find(["2"], 9).is_empty());
        let tombstone = JobTombstone { name: "ci/a".into(), uid: "1".into(), version: 7 };
        assert_eq!(tombstones.find(["2", "1"], 7), [tombstone]);
    }

    #[test]
    fn tombstones_are_bounded_in_time_and_number() {
        let (mut tombstones, begun) = (JobTombstones::default(), Instant::now());
        tombstones.insert(&job("old"), 1, begun);
        tombstones.insert(&job("new"), 2, begun + TTL);
        assert_eq!(tombstones.find(["old", "new"], 9).len(), 2);
        tombstones.insert(&job("newer"), 3, begun + TTL + Duration::from_secs(1));
        assert_eq!(tombstones.find(["old", "new", "newer"], 9).len(), 2);
        for n in 0..CAPACITY {
            tombstones.insert(&job(&format!("{n}")), 4, begun + TTL);
        }
        assert!(tombstones.find(["new", "newer"], 9).is_empty());
        assert_eq!((tombstones.order.len(), tombstones.by_uid.len()), (CAPACITY, CAPACITY));
    }
}
