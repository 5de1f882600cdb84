//! The annotations of the sink on a Job: that it is harvested, and the name of its result. Pure.

use job_handler_shared::{
    job::snapshot::{Finished, JobSnapshot},
    keys,
    policy::{effective::EffectivePolicy, results::Results},
};

/// Returns what its policies asked to store of a deleted Job, if it had finished and no mark says that its result was
/// stored.
pub(crate) fn missing_results(job: &JobSnapshot, effective: &EffectivePolicy) -> Option<Results> {
    let (finished, results) = job.finished.as_ref().zip(effective.results.as_ref())?;
    (!has_mark(job, finished)).then(|| results.clone())
}

/// Whether the Job names its result, which may have been removed since.
pub(crate) fn names_its_result(job: &JobSnapshot) -> bool {
    job.finished.as_ref().is_some_and(|finished| has_mark(job, finished))
}

/// Whether the Job's result was stored and then removed by retention.
pub(crate) fn is_result_removed(job: &JobSnapshot) -> bool {
    let own = job.annotations.get(keys::RETIRED).is_some_and(|uid| *uid == job.uid);
    own && names_its_result(job)
}

/// Whether the Job is marked as harvested with this outcome.
pub(super) fn has_mark(job: &JobSnapshot, finished: &Finished) -> bool {
    job.annotations.get(keys::STATUS).is_some_and(|status| status == finished.outcome.as_str())
        && job.annotations.contains_key(keys::RESULTS)
}
