//! Failure backoff: how long a group waits after failures in a row.
//!
//! Decided from what the ledger remembers of the group, and the finished Jobs that are there and not yet taken into
//! that: a failed Job that is deleted is not forgotten once the sink has seen it.

use std::sync::Arc;

use jiff::Timestamp;
use job_handler_shared::{
    backoff, job::JobSnapshot, ledger::JobLedgerSpec, policy::FailureBackoff, scope::group_in,
};

use crate::{limit::Refused, slots::Rules, wording};

/// The refusal of a Job whose group still waits. `ledger` is that of its namespace.
pub fn refuse(
    rules: Rules<'_>,
    jobs: &[Arc<JobSnapshot>],
    ledger: &JobLedgerSpec,
    job: &JobSnapshot,
    now: Timestamp,
) -> Option<Refused> {
    let policies = rules.matching(job);
    let backoffs: Vec<&FailureBackoff> =
        policies.iter().filter_map(|policy| policy.spec.failure_backoff.as_ref()).collect();
    if backoffs.is_empty() {
        return None;
    }
    let group = group_in(&policies, job)?;
    let runs = jobs
        .iter()
        .filter(|other| other.namespace == job.namespace && other.finished.is_some())
        .filter(|other| group_in(&rules.matching(other), other).as_ref() == Some(&group));
    let before = ledger.streak(&backoff::key(&group));
    let streak = backoff::absorb(before.as_ref(), runs.map(AsRef::as_ref), &backoffs)?;
    policies.iter().find_map(|policy| {
        let until = streak.until(policy.spec.failure_backoff.as_ref()?)?;
        let refused =
            || wording::too_early(&policy.reference, &group.value, streak.failures, &streak.job, until, now);
        (now < until).then(refused)
    })
}
