//! Why each queued Job waits, and its position in the queue. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::Timestamp;
use job_handler_shared::{
    job::{
        scope::{ScopeDomain, ScopeKey},
        snapshot::JobSnapshot,
    },
    ledger::refusal::IN_BACKOFF,
    policy::reference::PolicyRef,
    text::human_seconds,
};

use crate::queueing::{
    failure_backoff::BackoffWait,
    slots::{LimitedJob, sort_by_age},
};

/// Jobs named as holders of a limit's slots.
const NAMED_HOLDERS: usize = 2;

/// Why a queued Job waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WaitReason {
    /// The limit has no free slot.
    Slot {
        scope: ScopeKey,
        slots: u32,
        /// Names of some Jobs that hold the slots.
        holders: Vec<String>,
        /// Position in the queue, from 1.
        position: usize,
        /// The Job before it in the queue.
        behind: Option<String>,
    },
    /// The Job's group waits after failures.
    Backoff(BackoffWait),
}

/// Why the queued Jobs wait, in the order of the queue. `backoff` returns the wait of a Job's group, if any.
pub(crate) fn queue_positions(
    jobs: &[LimitedJob],
    backoff: impl Fn(&JobSnapshot) -> Option<BackoffWait>,
) -> Vec<(Arc<JobSnapshot>, WaitReason)> {
    let mut holders: HashMap<&ScopeKey, Vec<&JobSnapshot>> = HashMap::new();
    for LimitedJob { job, scopes } in jobs.iter().filter(|limited| limited.job.is_active()) {
        scopes.iter().for_each(|(scope, _)| holders.entry(scope).or_default().push(job));
    }
    holders.values_mut().for_each(|jobs| jobs.sort_by_key(|job| (job.created, &job.uid)));
    let mut queued: Vec<&LimitedJob> = jobs
        .iter()
        .filter(|LimitedJob { job, .. }| {
            job.is_queued() && job.deleting_since.is_none() && !job.is_managed_by_others()
        })
        .collect();
    sort_by_age(&mut queued);
    let mut queues: BTreeMap<&ScopeKey, Vec<&JobSnapshot>> = BTreeMap::new();
    let mut positions = Vec::new();
    for LimitedJob { job, scopes } in queued {
        if let Some(wait) = backoff(job) {
            positions.push((job.clone(), WaitReason::Backoff(wait)));
            continue;
        }
        let full = scopes.iter().find(|(scope, slots)| {
            let taken = holders.get(scope).map_or(0, Vec::len) + queues.get(scope).map_or(0, Vec::len);
            taken >= *slots as usize
        });
        if let Some((scope, slots)) = full {
            let earlier = queues.get(scope).map(Vec::as_slice).unwrap_or_default();
            let holding = holders.get(scope).into_iter().flatten().take(NAMED_HOLDERS);
            let reason = WaitReason::Slot {
                scope: scope.clone(),
                slots: *slots,
                holders: holding.map(|job| name_in(job, scope)).collect(),
                position: earlier.len() + 1,
                behind: earlier.last().map(|job| name_in(job, scope)),
            };
            positions.push((job.clone(), reason));
        }
        scopes.iter().for_each(|(scope, _)| queues.entry(scope).or_default().push(job));
    }
    positions
}

/// The Job's name, with its namespace where the scope spans several.
fn name_in(job: &JobSnapshot, scope: &ScopeKey) -> String {
    if scope.domain == ScopeDomain::Cluster { job.key() } else { job.name.clone() }
}

impl WaitReason {
    /// Falls as the Job moves up; 0 in a backoff.
    pub(crate) fn position(&self) -> usize {
        match self {
            Self::Slot { position, .. } => *position,
            Self::Backoff(_) => 0,
        }
    }

    pub(crate) fn policy(&self) -> &PolicyRef {
        match self {
            Self::Slot { scope, .. } => &scope.policy,
            Self::Backoff(wait) => &wait.policy,
        }
    }

    /// The note of the Event.
    pub(crate) fn note(&self, now: Timestamp) -> String {
        match self {
            Self::Slot { scope, slots, holders, position, behind } => {
                let behind = behind.as_ref().map(|behind| format!(" (behind {behind})")).unwrap_or_default();
                let s = if *slots == 1 { "" } else { "s" };
                let held = match holders.is_empty() {
                    true => String::new(),
                    false => format!("; slot{s} held by {}", holders.join(", ")),
                };
                format!(
                    "position {position} in the queue{behind}{held} (limit \"{}\" of {}, {slots} slot{s})",
                    scope.limit, scope.policy
                )
            }
            Self::Backoff(wait) => {
                let left = human_seconds(wait.until.as_second().saturating_sub(now.as_second()).max(1));
                let times = if wait.failures == 1 { "time" } else { "times in a row" };
                format!(
                    "queued: {IN_BACKOFF}: group {} failed {} {times} (last: {}); the Job starts in {left}, at {}, if a \
                     slot is free then (failureBackoff of {})",
                    wait.group, wait.failures, wait.last_failed, wait.until, wait.policy
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queueing::slots::tests::limited_job;

    fn notes(jobs: &[LimitedJob]) -> Vec<String> {
        let positions = queue_positions(jobs, |_| None);
        positions.iter().map(|(_, reason)| reason.note(Timestamp::UNIX_EPOCH)).collect()
    }

    #[test]
    fn a_note_names_the_position_the_job_before_and_the_holders() {
        let job = |name, queued| limited_job(name, queued, &[("ci", 1)]);
        let found = notes(&[job("runs", false), job("b", true), job("a", true)]);
        let limit = "slot held by runs (limit \"few\" of JobPolicy ci/p, 1 slot)";
        assert_eq!(found[0], format!("position 1 in the queue; {limit}"));
        assert_eq!(found[1], format!("position 2 in the queue (behind a); {limit}"));
        let wide = |name, queued| limited_job(name, queued, &[("cluster", 2)]);
        let found = notes(&[wide("x", false), wide("y", false), wide("a", true)]);
        assert_eq!(
            found,
            ["position 1 in the queue; slots held by ci/x, ci/y (limit \"few\" of JobPolicy ci/p, 2 slots)"]
        );
    }

    #[test]
    fn a_job_that_is_about_to_start_waits_for_nothing() {
        assert_eq!(notes(&[limited_job("a", true, &[("ci", 1)])]), Vec::<String>::new());
    }

    #[test]
    fn a_job_in_backoff_does_not_delay_the_position_of_others() {
        let job = |name, queued| limited_job(name, queued, &[("ci", 1)]);
        let wait = |job: &JobSnapshot| {
            (job.name == "a").then(|| BackoffWait {
                until: Timestamp::from_second(60).unwrap(),
                policy: limited_job("a", true, &[("ci", 1)]).scopes[0].0.policy.clone(),
                group: "7".into(),
                failures: 1,
                last_failed: "first".into(),
            })
        };
        let jobs = [job("runs", false), job("a", true), job("b", true)];
        let positions = queue_positions(&jobs, wait);
        assert_eq!(positions.iter().map(|(_, reason)| reason.position()).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(
            positions[0].1.note(Timestamp::UNIX_EPOCH),
            "queued: failure backoff: group 7 failed 1 time (last: first); the Job starts in 60s, at \
             1970-01-01T00:01:00Z, if a slot is free then (failureBackoff of JobPolicy ci/p)"
        );
    }
}
