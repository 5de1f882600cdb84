//! Failure backoff: how long a group waits after failures in a row.
//!
//! Decided from the finished Jobs that are still there: a failed Job that was deleted is forgotten.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use job_handler_shared::{
    job::{JobSnapshot, Outcome},
    policy::FailureBackoff,
    scope::group_in,
};

use crate::{limit::Refused, slots::Rules, wording};

/// The refusal of a Job whose group still waits.
pub fn refuse(
    rules: Rules<'_>,
    jobs: &[Arc<JobSnapshot>],
    job: &JobSnapshot,
    now: Timestamp,
) -> Option<Refused> {
    let policies = rules.matching(job);
    if policies.iter().all(|policy| policy.spec.failure_backoff.is_none()) {
        return None;
    }
    let group = group_in(&policies, job)?;
    let mut ended: Vec<(&Arc<JobSnapshot>, Timestamp, Outcome)> = jobs
        .iter()
        .filter(|other| other.namespace == job.namespace)
        .filter_map(|other| other.finished.as_ref().map(|f| (other, f.at, f.outcome)))
        .filter(|(other, ..)| group_in(&rules.matching(other), other).as_ref() == Some(&group))
        .collect();
    ended.sort_by(|(a, a_at, _), (b, b_at, _)| (b_at, &b.uid).cmp(&(a_at, &a.uid)));
    let failures: Vec<_> = ended.iter().take_while(|(_, _, outcome)| *outcome == Outcome::Failed).collect();
    let (last, at, _) = failures.first()?;
    policies.iter().find_map(|policy| {
        let rule = policy.spec.failure_backoff.as_ref()?;
        let until = at.checked_add(SignedDuration::from_secs(wait_seconds(rule, failures.len()))).ok()?;
        (now < until).then(|| {
            wording::too_early(&policy.reference, &group.value, failures.len(), &last.name, until, now)
        })
    })
}

/// `initial * multiplier^(failures - 1)`, at most the maximum.
fn wait_seconds(rule: &FailureBackoff, failures: usize) -> i64 {
    let factor = u64::from(rule.multiplier).saturating_pow(u32::try_from(failures - 1).unwrap_or(u32::MAX));
    let wait = u64::from(rule.initial_seconds).saturating_mul(factor).min(u64::from(rule.max_seconds));
    i64::try_from(wait).unwrap_or(i64::MAX)
}
