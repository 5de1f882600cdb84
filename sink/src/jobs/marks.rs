//! The marks on a Job: harvested, and where its result is.

use job_handler_shared::{
    job::snapshot::{Finished, JobSnapshot},
    keys,
    policy::{effective::EffectivePolicy, results::Results},
};

/// What was to be kept of a Job that is gone, where it had finished and its result was asked for, but no mark says that it
/// was stored.
pub fn missed(job: &JobSnapshot, effective: &EffectivePolicy) -> Option<Results> {
    let (finished, results) = job.finished.as_ref().zip(effective.results.as_ref())?;
    (!bears_mark(job, finished)).then(|| results.clone())
}

/// Whether the Job says where its result is, or was.
pub fn is_told_where(job: &JobSnapshot) -> bool {
    job.finished.as_ref().is_some_and(|finished| bears_mark(job, finished))
}

/// Whether the Job's result was stored and told, and then removed by retention.
pub fn is_retired(job: &JobSnapshot) -> bool {
    let own = job.annotations.get(keys::RETIRED).is_some_and(|uid| *uid == job.uid);
    own && is_told_where(job)
}

pub(crate) fn bears_mark(job: &JobSnapshot, finished: &Finished) -> bool {
    job.annotations.get(keys::STATUS).is_some_and(|status| status == finished.outcome.as_str())
        && job.annotations.contains_key(keys::RESULTS)
}
