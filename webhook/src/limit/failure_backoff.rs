//! Failure backoff: how long a group waits after failures in a row.
//!
//! RoundDecision from what the ledger remembers of the group, and the finished Jobs that are there and not yet taken into
//! that: a failed Job that is deleted is not forgotten once the sink has seen it.

use std::sync::Arc;

use jiff::Timestamp;
use job_handler_shared::{
    job::{group::GroupId, scope::group_of_job, snapshot::JobSnapshot},
    ledger::{crd::JobLedgerSpec, failure_streak},
    policy::limit::FailureBackoff,
};

use crate::limit::{Refused, message, scopes::LimitRules};

/// The group by which a Job may have to wait; none where no policy asks for that.
pub fn group(rules: LimitRules<'_>, job: &JobSnapshot) -> Option<GroupId> {
    let policies = rules.matching(job);
    policies.iter().find(|policy| policy.spec.failure_backoff.is_some())?;
    group_of_job(&policies, job)
}

/// The finished ones of these Jobs that are runs of a group.
pub fn runs(
    rules: LimitRules<'_>,
    jobs: &[Arc<JobSnapshot>],
    namespace: &str,
    group: &GroupId,
) -> Vec<Arc<JobSnapshot>> {
    let finished = jobs.iter().filter(|job| job.namespace == namespace && job.finished.is_some());
    finished.filter(|job| group_of_job(&rules.matching(job), job).as_ref() == Some(group)).cloned().collect()
}

/// The refusal of a Job whose group still waits. `runs` are the group's finished Jobs, `ledger` is that of its namespace.
pub fn refuse(
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
    let streak = failure_streak::record_runs(before.as_ref(), runs.iter().map(AsRef::as_ref), &backoffs)?;
    policies.iter().find_map(|policy| {
        let until = streak.next_attempt_at(policy.spec.failure_backoff.as_ref()?)?;
        let refused =
            || message::too_early(&policy.reference, &group.value, streak.failures, &streak.job, until, now);
        (now < until).then(refused)
    })
}
