//! Failure backoff: how long a group waits after failures in a row.
//!
//! The ledger records each group's failures, so a failure counts even after its Job is deleted, once the sink has seen it.
//! Finished Jobs that the ledger does not include yet are added.

use std::sync::Arc;

use jiff::Timestamp;
use job_handler_shared::{
    job::{group::GroupId, scope::group_of_job, snapshot::JobSnapshot},
    ledger::{crd::JobLedgerSpec, failure_streak},
    policy::limit::FailureBackoff,
};

use crate::limit::{Refused, message, scopes::LimitRules};

/// The group for which a Job may have to wait; `None` if no policy asks for failure backoff.
pub fn group(rules: LimitRules<'_>, job: &JobSnapshot) -> Option<GroupId> {
    let policies = rules.matching(job);
    policies.iter().find(|policy| policy.spec.failure_backoff.is_some())?;
    group_of_job(&policies, job)
}

/// The finished Jobs of a group.
pub(crate) fn runs(
    rules: LimitRules<'_>,
    jobs: &[Arc<JobSnapshot>],
    namespace: &str,
    group: &GroupId,
) -> Vec<Arc<JobSnapshot>> {
    let finished = jobs.iter().filter(|job| job.namespace == namespace && job.finished.is_some());
    finished.filter(|job| group_of_job(&rules.matching(job), job).as_ref() == Some(group)).cloned().collect()
}

/// The refusal of a Job whose group still waits. `runs` are the group's finished Jobs, `ledger` is the namespace's.
pub(crate) fn refuse(
    rules: LimitRules<'_>,
    group: &GroupId,
    runs: &[Arc<JobSnapshot>],
    ledger: &JobLedgerSpec,
    job: &JobSnapshot,
    now: Timestamp,
) -> Option<Refused> {
    let policies = rules.matching(job);
    let backoffs: Vec<&FailureBackoff> =
        policies.iter().filter_map(|policy| policy.spec.failure_backoff.as_ref()).collect();
    let before = ledger.streak(&failure_streak::group_key(group));
    let streak =
        failure_streak::record_runs(before.as_ref(), group, runs.iter().map(AsRef::as_ref), &backoffs)?;
    policies.iter().find_map(|policy| {
        let until = streak.next_attempt_at(policy.spec.failure_backoff.as_ref()?)?;
        let refused =
            || message::in_backoff(&policy.reference, &group.value, streak.failures, &streak.job, until, now);
        (now < until).then(refused)
    })
}
