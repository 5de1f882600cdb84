//! The annotations that the sink writes to a Job: its outcome, the name of its result, and whether retention removed that
//! result. Pure.

use job_handler_shared::{
    job::snapshot::{Finished, JobSnapshot},
    keys,
    policy::{effective::EffectivePolicy, results::Results},
};

/// Returns what the policies request of a deleted Job that had finished, if its annotations do not say that its result was
/// stored.
pub(crate) fn missing_results(job: &JobSnapshot, effective: &EffectivePolicy) -> Option<Results> {
    let (finished, results) = job.finished.as_ref().zip(effective.results.as_ref())?;
    (!is_harvested_as(job, finished)).then(|| results.clone())
}

/// Whether the annotations say that the Job's result was stored. Retention may have removed the result since.
pub(crate) fn is_harvested(job: &JobSnapshot) -> bool {
    job.finished.as_ref().is_some_and(|finished| is_harvested_as(job, finished))
}

/// Whether the Job's result was stored and then removed by retention.
pub(crate) fn is_result_removed(job: &JobSnapshot) -> bool {
    let own = job.annotations.get(keys::RETIRED).is_some_and(|uid| *uid == job.uid);
    own && is_harvested(job)
}

/// Whether the sink recorded on the Job that the object with this name is its result. Where an admission policy does not keep
/// others from that ([`keys::MARKS_ADMISSION_POLICY`]), whoever may edit the Job can write the same, and harms the results of
/// his own Jobs only.
pub(crate) fn is_recorded(job: &JobSnapshot, result: &str) -> bool {
    is_harvested(job) && job.annotations.get(keys::RESULTS).is_some_and(|name| name == result)
}

/// Whether the annotations say that a result with this outcome was stored.
pub(super) fn is_harvested_as(job: &JobSnapshot, finished: &Finished) -> bool {
    job.annotations.get(keys::STATUS).is_some_and(|status| status == finished.outcome.as_str())
        && job.annotations.contains_key(keys::RESULTS)
}
