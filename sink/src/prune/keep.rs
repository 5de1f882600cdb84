//! Decides which Jobs of a group stay. Pure; the running sink and the `prune` command share it.
//!
//! Jobs can be offered in any order. A Job is ruled out as soon as enough newer ones are known, so that the command can
//! prune a cluster of any size page by page and remember only the Jobs that stay.

use std::collections::BTreeSet;

use jiff::Timestamp;
use job_handler_shared::{
    job::snapshot::{JobSnapshot, Outcome},
    policy::cleanup::Keep,
};

/// The position of a Job in its group, ordered by (creationTimestamp, uid). Timestamps have a resolution of one second;
/// the uid decides between Jobs of the same second: arbitrarily, but the same in every process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct JobRank {
    pub(crate) created: Timestamp,
    pub(crate) uid: String,
    /// Whether the Job completed.
    pub(crate) succeeded: bool,
}

impl From<&JobSnapshot> for JobRank {
    fn from(job: &JobSnapshot) -> Self {
        let succeeded = job.finished.as_ref().is_some_and(|f| f.outcome == Outcome::Completed);
        Self { created: job.created, uid: job.uid.clone(), succeeded }
    }
}

/// The Jobs of one group that stay, among those offered so far.
#[derive(Clone, Debug)]
pub(crate) struct RetainedJobs {
    keep: Keep,
    newest: BTreeSet<JobRank>,
    succeeded: BTreeSet<JobRank>,
}

impl RetainedJobs {
    /// The newest Job always stays, also if `keep.newest` is 0.
    pub(crate) fn new(keep: Keep) -> Self {
        let keep = Keep { newest: keep.newest.max(1), ..keep };
        Self { keep, newest: BTreeSet::new(), succeeded: BTreeSet::new() }
    }

    /// Adds a Job; returns the Jobs that no longer stay because of it, which may be the Job itself.
    pub(crate) fn offer(&mut self, job: JobRank) -> Vec<JobRank> {
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

    pub(crate) fn newest(&self) -> Option<&JobRank> {
        self.newest.last()
    }

    /// Whether the Job stays as one of the newest, whatever its outcome.
    pub(crate) fn is_newest(&self, job: &JobRank) -> bool {
        self.newest.contains(job)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &JobRank> {
        self.newest.iter().chain(self.succeeded.difference(&self.newest))
    }
}

fn count(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Why a Job that is not among the newest stays nevertheless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeepReason {
    #[error("not finished")]
    NotFinished,
    #[error("being deleted")]
    Deleting,
    #[error("its result is not stored yet")]
    NotHarvested,
}

/// Checks that a Job that is not among the newest may be deleted. `harvested`: its result is stored, or no policy asks
/// for it.
pub(crate) fn check_deletable(job: &JobSnapshot, harvested: bool) -> Result<(), KeepReason> {
    match () {
        () if job.deleting_since.is_some() => Err(KeepReason::Deleting),
        () if job.finished.is_none() => Err(KeepReason::NotFinished),
        () if !harvested => Err(KeepReason::NotHarvested),
        () => Ok(()),
    }
}

/// Returns the Jobs of a group that do not stay, oldest first, and those that do, newest first. Ignores Jobs that are
/// being deleted: they take no other Job's place.
pub(crate) fn plan<'a>(
    jobs: impl IntoIterator<Item = &'a JobSnapshot>,
    keep: Keep,
) -> (BTreeSet<JobRank>, Vec<JobRank>) {
    let mut retained = RetainedJobs::new(keep);
    let mut out = BTreeSet::new();
    for job in jobs {
        if job.deleting_since.is_none() {
            out.extend(retained.offer(JobRank::from(job)));
        }
    }
    let mut kept: Vec<JobRank> = retained.iter().cloned().collect();
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

    /// The uids that a plain sort of all Jobs would delete.
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
        #[test]
        fn the_plan_equals_a_plain_sort_in_any_order(
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
    fn only_finished_and_harvested_jobs_are_deletable() {
        assert_eq!(check_deletable(&job(1, 1, None, false), true), Err(KeepReason::NotFinished));
        assert_eq!(check_deletable(&job(1, 1, Some(Outcome::Failed), true), true), Err(KeepReason::Deleting));
        assert_eq!(
            check_deletable(&job(1, 1, Some(Outcome::Failed), false), false),
            Err(KeepReason::NotHarvested)
        );
        assert_eq!(check_deletable(&job(1, 1, Some(Outcome::Failed), false), true), Ok(()));
    }
}
