//! Jobs that are gone, remembered for a while: one that was made, finished and was deleted between two rounds is in no
//! view, and its attempt would take a slot until it runs out.
//!
//! Why an attempt may be taken out by this: a uid is given to one create only and never comes back, so a Job that was
//! seen and then deleted takes no slot in any later moment. The attempt is resolved as one whose Job is seen in the view
//! is, at the resourceVersion of the deletion (a Job's: a DELETED event carries it). Whoever decides by the ledger
//! without the attempt needs a view of at least that, and there the Job is gone. A view that is older than a deletion
//! is not told of it: it may show the Job yet.
//!
//! What came and went between a watch that the apiserver could not go on with (410) and the list that followed is not
//! known here: there attempts run out.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use job_handler_shared::job::snapshot::JobSnapshot;

/// Attempts run out before this, and then nobody asks any more.
const KEPT: Duration = Duration::from_secs(90);
/// About 2 MiB. The oldest go first; their attempts run out.
const MOST: usize = 10_000;

/// A Job that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobTombstone {
    /// `namespace/name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// resourceVersion of the deletion; where only a list told that it is gone, the one that it was seen with last.
    pub version: u64,
}

/// By uid.
#[derive(Debug, Default)]
pub struct JobTombstones {
    by_uid: HashMap<String, JobTombstone>,
    order: VecDeque<(Instant, String)>,
}

impl JobTombstones {
    /// A Job is gone.
    pub fn insert(&mut self, job: &JobSnapshot, version: u64, now: Instant) {
        let tombstone = JobTombstone { name: job.key(), uid: job.uid.clone(), version };
        if self.by_uid.insert(job.uid.clone(), tombstone).is_none() {
            self.order.push_back((now, job.uid.clone()));
        }
        let is_old = |at: Instant| now.saturating_duration_since(at) > KEPT;
        while self.order.len() > MOST || self.order.front().is_some_and(|(at, _)| is_old(*at)) {
            if let Some((_, uid)) = self.order.pop_front() {
                self.by_uid.remove(&uid);
            }
        }
    }

    /// Of these uids, those that were gone by a resourceVersion.
    pub fn find<'a>(&self, uids: impl IntoIterator<Item = &'a str>, until: u64) -> Vec<JobTombstone> {
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
    fn a_grave_is_found_by_views_that_reach_it() {
        let mut tombstones = JobTombstones::default();
        tombstones.insert(&job("1"), 7, Instant::now());
        assert!(tombstones.find(["1"], 6).is_empty() && tombstones.find(["2"], 9).is_empty());
        let tombstone = JobTombstone { name: "ci/a".into(), uid: "1".into(), version: 7 };
        assert_eq!(tombstones.find(["2", "1"], 7), [tombstone]);
    }

    #[test]
    fn graves_are_bounded_in_time_and_number() {
        let (mut tombstones, begun) = (JobTombstones::default(), Instant::now());
        tombstones.insert(&job("old"), 1, begun);
        tombstones.insert(&job("new"), 2, begun + KEPT);
        assert_eq!(tombstones.find(["old", "new"], 9).len(), 2);
        tombstones.insert(&job("newer"), 3, begun + KEPT + Duration::from_secs(1));
        assert_eq!(tombstones.find(["old", "new", "newer"], 9).len(), 2);
        for n in 0..MOST {
            tombstones.insert(&job(&format!("{n}")), 4, begun + KEPT);
        }
        assert!(tombstones.find(["new", "newer"], 9).is_empty());
        assert_eq!((tombstones.order.len(), tombstones.by_uid.len()), (MOST, MOST));
    }
}
