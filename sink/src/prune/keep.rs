//! Which Jobs of a group stay. Pure, and the same for the running sink and the one-shot cleaner.
//!
//! Jobs are offered one by one, in whatever order; a Job is ruled out as soon as enough newer ones are known, so that a
//! cluster of any size is pruned page by page, remembering only what stays.

use std::collections::BTreeSet;

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    policy::cleanup::Keep,
};

/// A Job as the order sees it: by (creationTimestamp, uid). Timestamps have a resolution of one second, so that the uid
/// decides between Jobs of the same second: arbitrary, but the same for everyone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ranked {
    /// `metadata.creationTimestamp`.
    pub created: Timestamp,
    /// `metadata.uid`.
    pub uid: String,
    /// Whether it has completed.
    pub succeeded: bool,
}

impl From<&JobSnapshot> for Ranked {
    fn from(job: &JobSnapshot) -> Self {
        let succeeded = job.finished.as_ref().is_some_and(|f| f.outcome == Outcome::Completed);
        Self { created: job.created, uid: job.uid.clone(), succeeded }
    }
}

/// The Jobs of one group that stay, as far as has been offered.
#[derive(Clone, Debug)]
pub struct Keepers {
    keep: Keep,
    newest: BTreeSet<Ranked>,
    succeeded: BTreeSet<Ranked>,
}

impl Keepers {
    /// Keeps this many; at least the newest one, whatever `keep` says.
    pub fn new(keep: Keep) -> Self {
        let keep = Keep { newest: keep.newest.max(1), ..keep };
        Self { keep, newest: BTreeSet::new(), succeeded: BTreeSet::new() }
    }

    /// Takes a Job into account; gives those that do not stay because of it (perhaps itself).
    pub fn offer(&mut self, job: Ranked) -> Vec<Ranked> {
        let mut out = Vec::new();
        if job.succeeded {
            self.succeeded.insert(job.clone());
            if self.succeeded.len() > count(self.keep.newest_succeeded) {
                out.extend(self.succeeded.pop_first());
            }
        }
        self.newest.insert(job);
        if self.newest.len() > count(self.keep.newest) {
            out.extend(self.newest.pop_first());
        }
        out.retain(|job| !self.newest.contains(job) && !self.succeeded.contains(job));
        out.dedup();
        out
    }

    /// The newest of all.
    pub fn newest(&self) -> Option<&Ranked> {
        self.newest.last()
    }

    /// Whether it stays as one of the newest, whatever its outcome.
    pub fn is_newest(&self, job: &Ranked) -> bool {
        self.newest.contains(job)
    }

    /// All that stay.
    pub fn iter(&self) -> impl Iterator<Item = &Ranked> {
        self.newest.iter().chain(self.succeeded.difference(&self.newest))
    }

    /// Whether it stays.
    pub fn contains(&self, job: &Ranked) -> bool {
        self.newest.contains(job) || self.succeeded.contains(job)
    }
}

fn count(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Why a Job that is not among the newest still stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Spared {
    /// It runs, or waits.
    #[error("not finished")]
    NotFinished,
    /// It is on its way out.
    #[error("being deleted")]
    Deleting,
    /// Its result is not stored yet.
    #[error("its result is not stored yet")]
    NotHarvested,
    /// No policy prunes it.
    #[error("no policy prunes it")]
    NotAsked,
}

/// Whether a Job that is not among the newest may go. `harvested`: nobody asks for its result, or it is stored.
///
/// # Errors
/// Tells why not.
pub fn may_go(job: &JobSnapshot, harvested: bool) -> Result<(), Spared> {
    match () {
        () if job.deleting_since.is_some() => Err(Spared::Deleting),
        () if job.finished.is_none() => Err(Spared::NotFinished),
        () if !harvested => Err(Spared::NotHarvested),
        () => Ok(()),
    }
}

/// The Jobs of a group that do not stay, oldest first, and those that do, newest first. Jobs that are being deleted do
/// not count: one on its way out keeps nobody's place.
pub fn plan<'a>(
    jobs: impl IntoIterator<Item = &'a JobSnapshot>,
    keep: Keep,
) -> (BTreeSet<Ranked>, Vec<Ranked>) {
    let mut keepers = Keepers::new(keep);
    let mut out = BTreeSet::new();
    for job in jobs {
        if job.deleting_since.is_none() {
            out.extend(keepers.offer(Ranked::from(job)));
        }
    }
    let mut kept: Vec<Ranked> = keepers.iter().cloned().collect();
    kept.sort_by(|a, b| b.cmp(a));
    (out, kept)
}

#[cfg(test)]
mod tests {
    use job_handler_shared::job::snapshot::Finished;
    use proptest::prelude::*;

    use super::*;

    fn job(created: i64, uid: u32, outcome: Option<Outcome>, deleting: bool) -> JobSnapshot {
        let at = Timestamp::UNIX_EPOCH;
        JobSnapshot {
            uid: format!("{uid:03}"),
            created: Timestamp::from_second(created).unwrap(),
            finished: outcome.map(|outcome| Finished {
                outcome,
                reason: String::new(),
                message: String::new(),
                at,
            }),
            deleting_since: deleting.then_some(at),
            ..JobSnapshot::default()
        }
    }

    /// Sorts all of them and counts: the plainest way to say it.
    fn oracle(jobs: &[JobSnapshot], keep: Keep) -> Vec<String> {
        let mut sorted: Vec<_> = jobs.iter().filter(|j| j.deleting_since.is_none()).collect();
        sorted.sort_by_key(|j| std::cmp::Reverse((j.created, j.uid.clone())));
        let done = |j: &&&JobSnapshot| j.finished.as_ref().is_some_and(|f| f.outcome == Outcome::Completed);
        let stays: Vec<&str> = sorted
            .iter()
            .take(keep.newest.max(1) as usize)
            .map(|j| j.uid.as_str())
            .chain(sorted.iter().filter(done).take(keep.newest_succeeded as usize).map(|j| j.uid.as_str()))
            .collect();
        let mut gone: Vec<String> =
            sorted.iter().map(|j| j.uid.clone()).filter(|uid| !stays.contains(&uid.as_str())).collect();
        gone.sort();
        gone
    }

    proptest! {
        /// In whatever order the Jobs come, the plan is the oracle's.
        #[test]
        fn equals_the_oracle(
            jobs in prop::collection::vec((0i64..5, prop::option::of(prop::bool::ANY), prop::bool::weighted(0.1)), 0..20),
            newest in 0u32..4, newest_succeeded in 0u32..4, rotate in 0usize..20,
        ) {
            let mut jobs: Vec<_> = jobs.into_iter().enumerate().map(|(n, (created, ended, deleting))| {
                let outcome = ended.map(|well| if well { Outcome::Completed } else { Outcome::Failed });
                job(created, n as u32, outcome, deleting)
            }).collect();
            let middle = rotate.min(jobs.len());
            jobs.rotate_left(middle);
            let keep = Keep { newest, newest_succeeded };
            let (out, kept) = plan(&jobs, keep);
            let mut gone: Vec<String> = out.iter().map(|r| r.uid.clone()).collect();
            gone.sort();
            prop_assert_eq!(gone, oracle(&jobs, keep));
            prop_assert_eq!(out.len() + kept.len(), jobs.iter().filter(|j| j.deleting_since.is_none()).count());
        }
    }

    #[test]
    fn what_runs_is_spared() {
        assert_eq!(may_go(&job(1, 1, None, false), true), Err(Spared::NotFinished));
        assert_eq!(may_go(&job(1, 1, Some(Outcome::Failed), true), true), Err(Spared::Deleting));
        assert_eq!(may_go(&job(1, 1, Some(Outcome::Failed), false), false), Err(Spared::NotHarvested));
        assert_eq!(may_go(&job(1, 1, Some(Outcome::Failed), false), true), Ok(()));
    }
}
