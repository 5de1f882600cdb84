//! Failures in a row of a group, and when its next Job may run. Pure; the webhook decides by it, the sink stores it in the
//! ledger.
//!
//! Runs are counted in the order in which they ended. Only the time of the last counted run is stored, so that deleting a
//! failed Job does not reset the streak, and a Job that stays is not counted twice.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{
    job::{
        group::GroupId,
        snapshot::{JobSnapshot, Outcome},
    },
    keys,
    policy::limit::FailureBackoff,
};

/// The failure streak of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureStreak {
    /// Failures in a row; 0 after a success.
    pub failures: u32,
    /// Name of the last Job that ended.
    pub job: String,
    /// When it ended. All earlier runs are counted.
    pub ended: Timestamp,
    /// Uids of the counted Jobs that ended in the same second.
    pub uids: BTreeSet<String>,
    /// When the next Job may run; informational, decisions use the current policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// Maximum number of groups per namespace; the oldest are dropped. An object has room for about three times as many.
pub const MAX_GROUPS: usize = 2000;

impl FailureStreak {
    /// Whether the streak includes this run.
    pub fn includes(&self, job: &JobSnapshot) -> bool {
        let Some(finished) = &job.finished else { return false };
        finished.at < self.ended || (finished.at == self.ended && self.uids.contains(&job.uid))
    }

    /// When the next Job may run under a rule; none if it may run at once.
    pub fn next_attempt_at(&self, rule: &FailureBackoff) -> Option<Timestamp> {
        let failures = self.failures.checked_sub(1)?;
        let factor = u64::from(rule.multiplier).saturating_pow(failures);
        let wait = u64::from(rule.initial_seconds).saturating_mul(factor).min(u64::from(rule.max_seconds));
        self.ended.checked_add(SignedDuration::from_secs(i64::try_from(wait).ok()?)).ok()
    }

    /// When the streak expires, unless a Job of the group is active.
    pub fn expires_at<'a>(&self, rules: impl IntoIterator<Item = &'a FailureBackoff>) -> Timestamp {
        self.ended.checked_add(retention(rules)).unwrap_or(Timestamp::MAX)
    }
}

/// Adds runs of a group, in any order, that `before` does not include. Returns none while there was no failure.
pub fn record_runs<'a>(
    before: Option<&FailureStreak>,
    group: &GroupId,
    runs: impl IntoIterator<Item = &'a JobSnapshot>,
    rules: &[&FailureBackoff],
) -> Option<FailureStreak> {
    let mut runs: Vec<_> = runs
        .into_iter()
        .filter(|job| was_created_in(job, group) && before.is_none_or(|known| !known.includes(job)))
        .filter_map(|job| job.finished.as_ref().map(|finished| (finished, job)))
        .collect();
    runs.sort_by(|(a, a_job), (b, b_job)| (a.at, &a_job.uid).cmp(&(b.at, &b_job.uid)));
    let mut streak = before.cloned();
    // Of successes before the first failure, only the uids of those in the same second matter.
    let mut passed: Vec<(Timestamp, &str)> = Vec::new();
    for (finished, job) in runs {
        let failed = finished.outcome == Outcome::Failed;
        let Some(known) = &mut streak else {
            passed.push((finished.at, &job.uid));
            if failed {
                let same = passed.iter().filter(|(at, _)| *at == finished.at);
                streak = Some(FailureStreak {
                    failures: 1,
                    job: job.name.clone(),
                    ended: finished.at,
                    uids: same.map(|(_, uid)| (*uid).to_owned()).collect(),
                    until: None,
                });
            }
            continue;
        };
        known.failures = match failed {
            true if job.created > known.expires_at(rules.iter().copied()) => 1,
            true => known.failures.saturating_add(1),
            false => 0,
        };
        if finished.at != known.ended {
            known.uids.clear();
        }
        (known.ended, known.job) = (finished.at, job.name.clone());
        known.uids.insert(job.uid.clone());
    }
    let mut streak = streak?;
    streak.until = rules.iter().filter_map(|rule| streak.next_attempt_at(rule)).max();
    Some(streak)
}

/// Whether a Job has been in a group since it was created: only then it says something about the group. Labels of finished Jobs
/// may be changed, so that any Job could be moved into a group to end its backoff, or to begin one. The stamped label
/// cannot be set later (the admission policy `job-handler-marks`).
pub fn was_created_in(job: &JobSnapshot, group: &GroupId) -> bool {
    job.labels.get(keys::GROUP) == Some(&group.value)
}

/// How long a failure counts while no Job of the group is active: twice the longest wait.
fn retention<'a>(rules: impl IntoIterator<Item = &'a FailureBackoff>) -> SignedDuration {
    let longest = rules.into_iter().map(|rule| i64::from(rule.max_seconds)).max().unwrap_or_default();
    SignedDuration::from_secs(longest.saturating_mul(2))
}

/// Key of a group in a ledger; [`parse_group_key`] is the inverse.
pub fn group_key(group: &GroupId) -> String {
    format!("{}={}", group.by, group.value)
}

/// Parses a key of a ledger. Label keys and owners do not contain `=`.
pub fn parse_group_key(key: &str) -> Option<GroupId> {
    let (by, value) = key.split_once('=')?;
    Some(GroupId { by: by.to_owned(), value: value.to_owned() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use std::collections::BTreeMap;

    use crate::{job::snapshot::Finished, policy::limit::WhenFull};

    const RULE: FailureBackoff =
        FailureBackoff { initial_seconds: 10, multiplier: 2, max_seconds: 60, action: WhenFull::Reject };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn group() -> GroupId {
        GroupId { by: "labels:app".into(), value: "shop".into() }
    }

    fn run(uid: &str, created: i64, ended: i64, failed: bool) -> JobSnapshot {
        let outcome = if failed { Outcome::Failed } else { Outcome::Completed };
        let (reason, message) = (String::new(), String::new());
        JobSnapshot {
            name: uid.into(),
            uid: uid.into(),
            labels: [(keys::GROUP.to_owned(), "shop".to_owned())].into(),
            created: at(created),
            finished: Some(Finished { outcome, reason, message, at: at(ended) }),
            ..JobSnapshot::default()
        }
    }

    #[test]
    fn waits_grow_to_the_maximum_and_a_success_resets_them() {
        let mut streak = None;
        for (n, wait) in [10, 20, 40, 60, 60].into_iter().enumerate() {
            let n = i64::try_from(n).unwrap() * 100;
            streak = record_runs(streak.as_ref(), &group(), &[run(&n.to_string(), n, n + 1, true)], &[&RULE]);
            assert_eq!(streak.as_ref().unwrap().until, Some(at(n + 1 + wait)));
        }
        streak = record_runs(streak.as_ref(), &group(), &[run("well", 500, 501, false)], &[&RULE]);
        assert_eq!(streak.as_ref().map(|s| (s.failures, s.until)), Some((0, None)));
        // Failed Jobs that still exist are not counted again.
        assert_eq!(record_runs(streak.as_ref(), &group(), &[run("400", 400, 401, true)], &[&RULE]), streak);
        assert_eq!(
            record_runs(None, &group(), &[run("well", 0, 1, false)], &[&RULE]),
            None,
            "no failure yet"
        );
    }

    #[test]
    fn a_job_that_was_moved_into_the_group_says_nothing_about_it() {
        let moved = |job: JobSnapshot| JobSnapshot {
            labels: [(keys::GROUP.to_owned(), "other".to_owned())].into(),
            ..job
        };
        let unstamped = |job: JobSnapshot| JobSnapshot { labels: BTreeMap::new(), ..job };
        assert_eq!(record_runs(None, &group(), &[moved(run("bad", 0, 1, true))], &[&RULE]), None);
        let waits = record_runs(None, &group(), &[run("a", 0, 1, true)], &[&RULE]);
        for good in [moved(run("good", 2, 3, false)), unstamped(run("good", 2, 3, false))] {
            assert_eq!(record_runs(waits.as_ref(), &group(), &[good], &[&RULE]), waits);
        }
    }

    #[test]
    fn an_expired_streak_starts_again() {
        let first = record_runs(None, &group(), &[run("a", 0, 1, true)], &[&RULE]);
        let begun_in_time = run("b", 121, 9000, true);
        assert_eq!(record_runs(first.as_ref(), &group(), &[begun_in_time], &[&RULE]).unwrap().failures, 2);
        assert_eq!(
            record_runs(first.as_ref(), &group(), &[run("b", 122, 130, true)], &[&RULE]).unwrap().failures,
            1
        );
    }

    #[test]
    fn group_keys_round_trip() {
        let group = GroupId { by: "labels:a,b".into(), value: "7.x".into() };
        assert_eq!(parse_group_key(&group_key(&group)), Some(group));
        assert_eq!(parse_group_key("garbage"), None);
    }

    proptest! {
        /// The count does not depend on how runs are split into calls, or which runs are passed again.
        #[test]
        fn every_run_counts_once(ends in prop::collection::vec((0i64..6, prop::bool::ANY), 1..12), cut in 0usize..12) {
            let mut runs: Vec<_> = ends
                .iter()
                .enumerate()
                .map(|(n, (ended, failed))| run(&format!("{n:02}"), 0, *ended, *failed))
                .collect();
            runs.sort_by_key(|job| (job.finished.as_ref().unwrap().at, job.uid.clone()));
            let whole = record_runs(None, &group(), &runs, &[&RULE]);
            let cut = cut.min(runs.len());
            let first = record_runs(None, &group(), &runs[..cut], &[&RULE]);
            prop_assume!(first.is_some() || cut == 0);
            let again = record_runs(first.as_ref(), &group(), &runs, &[&RULE]);
            let count = |streak: &Option<FailureStreak>| streak.as_ref().map_or(0, |s| s.failures);
            prop_assert_eq!(count(&again), count(&whole));
            prop_assert_eq!(record_runs(again.as_ref(), &group(), &runs, &[&RULE]), again);
        }
    }
}
