//! Which queued Jobs to release: first in, first out per scope, skipping a head whose other scope is full. Pure.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use job_handler_shared::{
    job::{
        scope::ScopeKey,
        snapshot::{JobSnapshot, JobState},
    },
    kube::error::ApiError,
    ledger::refusal,
    process::jitter::{exponential, full_jitter},
};

use crate::queueing::slots::{LimitedJob, sort_by_age};

/// Pause after a refused release; up to half of it is added.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// First pause where a limit was full although a slot seemed free; it doubles up to [`REFUSED_PAUSE`].
const FIRST_FULL_PAUSE: Duration = Duration::from_secs(1);

/// How a Job whose release failed affects the Jobs behind it until it is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueHold {
    /// The limit was full or could not be checked: the next free slot is reserved for this Job.
    ReservesSlot,
    /// The Job has an obstacle of its own (backoff, another webhook): others pass it.
    Skipped,
}

impl QueueHold {
    fn after(error: &ApiError) -> Self {
        match error {
            ApiError::Refused { code: 403, message, .. }
                if [refusal::LIMIT_REACHED, refusal::DUPLICATE_JOB]
                    .iter()
                    .any(|text| message.contains(text)) =>
            {
                Self::ReservesSlot
            }
            error if error.is_transient() => Self::ReservesSlot,
            _ => Self::Skipped,
        }
    }
}

/// A Job whose release failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReleaseRetry {
    pub(crate) until: Instant,
    pub(crate) hold: QueueHold,
    times: u32,
}

impl ReleaseRetry {
    pub(crate) fn after(error: &ApiError, before: Option<&Self>, now: Instant) -> Self {
        let hold = QueueHold::after(error);
        let times = before.map_or(0, |before| before.times.saturating_add(1));
        let pause = match (hold, error) {
            (QueueHold::ReservesSlot, ApiError::Refused { code: 403, .. }) => {
                exponential(FIRST_FULL_PAUSE, REFUSED_PAUSE, times)
            }
            _ => REFUSED_PAUSE,
        };
        Self { until: now + pause + full_jitter(pause / 2), hold, times }
    }
}

/// The Jobs to release now, in order. `jobs` are all unfinished ones; `hold` returns the state of a failed release.
pub(crate) fn releasable(
    jobs: &[LimitedJob],
    hold: impl Fn(&str) -> Option<QueueHold>,
) -> Vec<Arc<JobSnapshot>> {
    let mut active: HashMap<&ScopeKey, u32> = HashMap::new();
    for LimitedJob { scopes, .. } in jobs.iter().filter(|limited| limited.job.is_active()) {
        for (scope, _) in scopes {
            *active.entry(scope).or_default() += 1;
        }
    }
    let mut queued: Vec<&LimitedJob> = jobs.iter().filter(|limited| is_candidate(&limited.job)).collect();
    sort_by_age(&mut queued);
    let mut release = Vec::new();
    for LimitedJob { job, scopes } in queued {
        let hold = hold(&job.uid);
        let is_free =
            |(scope, slots): &(ScopeKey, u32)| active.get(scope).copied().unwrap_or_default() < *slots;
        if hold == Some(QueueHold::Skipped) || !scopes.iter().all(is_free) {
            continue;
        }
        for (scope, _) in scopes {
            *active.entry(scope).or_default() += 1;
        }
        if hold.is_none() {
            release.push(job.clone());
        }
    }
    release
}

fn is_candidate(job: &JobSnapshot) -> bool {
    job.is_queued()
        && job.state() == JobState::Suspended
        && job.deleting_since.is_none()
        && !job.is_managed_by_others()
}

#[cfg(test)]
mod tests {
    use job_handler_shared::keys;

    use super::*;
    use crate::queueing::slots::tests::limited_job as job;

    fn released(jobs: &[LimitedJob]) -> Vec<String> {
        let hold = |uid: &str| match uid {
            "full" => Some(QueueHold::ReservesSlot),
            "skipped" => Some(QueueHold::Skipped),
            _ => None,
        };
        releasable(jobs, hold).iter().map(|job| job.uid.clone()).collect()
    }

    #[test]
    fn jobs_are_released_first_in_first_out_until_the_scope_is_full() {
        let jobs = [
            job("c", true, &[("ci", 3)]),
            job("a", true, &[("ci", 3)]),
            job("b", true, &[("ci", 3)]),
            job("runs", false, &[("ci", 3)]),
        ];
        assert_eq!(released(&jobs), ["a", "b"]);
    }

    #[test]
    fn a_head_whose_other_scope_is_full_is_skipped() {
        let jobs = [
            job("runs", false, &[("a", 1), ("cluster", 2)]),
            job("1", true, &[("a", 1), ("cluster", 2)]),
            job("2", true, &[("b", 1), ("cluster", 2)]),
            job("3", true, &[("b", 1), ("cluster", 2)]),
        ];
        assert_eq!(released(&jobs), ["2"]);
    }

    #[test]
    fn a_job_refused_as_full_reserves_the_next_slot_of_its_scope() {
        let one = |uid: &str| job(uid, true, &[("ci", 1)]);
        assert!(released(&[one("full"), one("younger")]).is_empty());
        assert_eq!(released(&[one("skipped"), one("younger")]), ["younger"]);
        assert_eq!(released(&[one("full"), job("elsewhere", true, &[("b", 1)])]), ["elsewhere"]);
    }

    #[test]
    fn only_a_full_limit_or_no_answer_reserves_a_slot() {
        let refused = |code: u16, message: &str| ApiError::Refused {
            what: "start".into(),
            code,
            reason: String::new(),
            message: message.into(),
        };
        for (error, hold) in [
            (refused(403, "denied: concurrent job limit reached: 1 active"), QueueHold::ReservesSlot),
            (refused(403, "denied: duplicate job: a of group 7"), QueueHold::ReservesSlot),
            (refused(503, "job limits cannot be checked now"), QueueHold::ReservesSlot),
            (
                ApiError::Timeout { what: "start".into(), after: Duration::from_secs(10) },
                QueueHold::ReservesSlot,
            ),
            (refused(403, "denied: failure backoff: group 7"), QueueHold::Skipped),
            (refused(403, "denied: another webhook does not like it"), QueueHold::Skipped),
            (refused(422, "invalid"), QueueHold::Skipped),
        ] {
            assert_eq!(QueueHold::after(&error), hold, "{error}");
        }
        let full = refused(403, refusal::LIMIT_REACHED);
        let now = Instant::now();
        let first = ReleaseRetry::after(&full, None, now);
        assert!(first.until <= now + Duration::from_millis(1500), "it is retried soon");
        let fifth = (0..4).fold(first, |retry, _| ReleaseRetry::after(&full, Some(&retry), now));
        assert!(fifth.until >= now + REFUSED_PAUSE);
    }

    #[test]
    fn only_jobs_that_job_handler_queued_are_released() {
        let mut foreign = job("kueue", true, &[]);
        Arc::make_mut(&mut foreign.job).labels.insert(keys::KUEUE_QUEUE.into(), "q".into());
        let mut by_author = job("suspended-by-its-author", true, &[]);
        Arc::make_mut(&mut by_author.job).annotations.clear();
        let mut deleting = job("deleting", true, &[]);
        Arc::make_mut(&mut deleting.job).deleting_since = Some(jiff::Timestamp::UNIX_EPOCH);
        let mut ending = job("ending", true, &[]);
        Arc::make_mut(&mut ending.job).terminating_pods = 1;
        let mut copied = job("copied-mark", true, &[]);
        Arc::make_mut(&mut copied.job).annotations.remove(keys::STAMPED);
        assert!(
            released(&[foreign, by_author, copied, deleting, ending, job("skipped", true, &[])]).is_empty()
        );
        assert_eq!(released(&[job("limit-removed", true, &[])]), ["limit-removed"]);
    }
}
