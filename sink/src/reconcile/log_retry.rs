//! Keeps a Job whose logs cannot be read for now, and harvests it again later.
//!
//! Nothing is stored until then: the result, and the deletion of the Job and its pods that may follow from it, wait for the
//! only copy of a log until the harvest deadline of the policies. The pauses are in memory: a new leader begins anew.

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    policy::results::Results,
    process::jitter::{exponential, jitter},
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    harvest::{
        captured::PendingLogs,
        tuning::{BEFORE_DEADLINE, FIRST_HARVEST_PAUSE, LONGEST_HARVEST_PAUSE, MIN_HARVESTS},
    },
    model::job_change::Uid,
    notify::result_events,
    observe::key::Key,
    reconcile::job::JobReconciler,
};

/// A Job that was not harvested again for so long does not need it any more.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);
/// Harvest after which an Event reports the delay: the first one may have met a moment's failure.
const REPORT_AT: u32 = 2;

/// The Jobs that wait for their logs; clones share them.
#[derive(Clone, Debug, Default)]
pub struct LogRetries(Arc<Mutex<HashMap<Uid, HarvestRetry>>>);

#[derive(Clone, Copy, Debug)]
struct HarvestRetry {
    /// Harvests that failed.
    failed: u32,
    next: Instant,
}

impl LogRetries {
    /// Whether a Job waits for its next harvest.
    pub(crate) fn is_waiting(&self, job: &str) -> bool {
        self.0.lock().get(job).is_some_and(|retry| retry.next > Instant::now())
    }

    /// Whether a Job is harvested again instead of being stored without some of its logs, which count as lost at `lost_at`, but
    /// not before [`MIN_HARVESTS`].
    pub(crate) fn has_another(&self, job: &str, lost_at: Timestamp, now: Timestamp) -> bool {
        let failed = self.0.lock().get(job).map_or(0, |retry| retry.failed);
        now < lost_at || failed + 1 < MIN_HARVESTS
    }

    /// Counts a harvest that failed. Returns the number of failed ones, and the pause until the next one.
    pub(crate) fn postpone(&self, job: &str, lost_at: Timestamp, now: Timestamp) -> (u32, Duration) {
        let mut retries = self.0.lock();
        let failed = retries.get(job).map_or(0, |retry| retry.failed).saturating_add(1);
        let mut pause = jitter(exponential(FIRST_HARVEST_PAUSE, LONGEST_HARVEST_PAUSE, failed - 1));
        // The last attempt is right after the end of the wait.
        if let Ok(left) = Duration::try_from(lost_at.duration_since(now)) {
            pause = pause.min(left + Duration::from_secs(1));
        }
        let now = Instant::now();
        retries.retain(|_, retry| retry.next + FORGET_AFTER > now);
        retries.insert(job.to_owned(), HarvestRetry { failed, next: now + pause });
        (failed, pause)
    }

    /// Forgets a Job whose result is stored, or that is gone.
    pub(crate) fn forget(&self, job: &str) {
        self.0.lock().remove(job);
    }
}

/// When the logs of a Job that cannot be read count as lost: shortly before the harvest deadline, because then the Job's TTL
/// may delete its pods.
fn lost_at(finished: Timestamp, results: &Results) -> Timestamp {
    let deadline = Duration::from_secs(results.harvest_deadline_seconds.into());
    let wait = SignedDuration::try_from(deadline - BEFORE_DEADLINE.min(deadline / 10));
    wait.ok().and_then(|wait| finished.checked_add(wait).ok()).unwrap_or(Timestamp::MAX)
}

impl JobReconciler {
    /// Whether a Job is harvested again for these logs. Removed ones are not waited for until the harvest deadline.
    pub(super) fn waits_for_logs(&self, job: &JobSnapshot, results: &Results, pending: &PendingLogs) -> bool {
        let Some(finished) = &job.finished else { return false };
        let lost_at = if pending.may_exist { lost_at(finished.at, results) } else { Timestamp::MIN };
        self.log_retries.has_another(&job.uid, lost_at, Timestamp::now())
    }

    /// Puts a Job back into the queue, because some of its logs cannot be read for now, and reports it if that lasts.
    pub(super) async fn postpone_harvest(&self, job: &JobSnapshot, results: &Results, pending: &PendingLogs) {
        let now = Timestamp::now();
        let lost_at = lost_at(job.finished.as_ref().map_or(now, |finished| finished.at), results);
        let missing = &pending.reason;
        let (failed, pause) = self.log_retries.postpone(&job.uid, lost_at, now);
        self.queue.add_after(Key::Job(job.uid.clone()), pause);
        self.metrics.action_failed("harvest");
        let seconds = pause.as_secs();
        tracing::warn!(
            job = job.key(),
            failed,
            "cannot read logs: {missing}; the next attempt is in {seconds} s"
        );
        if pending.may_exist
            && failed == REPORT_AT
            && let Err(error) = result_events::publish_delayed(&self.recorder, job, missing, lost_at).await
        {
            tracing::debug!(job = job.key(), "cannot report that the result is delayed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u32 = 24 * 3_600;

    fn results(harvest_deadline_seconds: u32) -> Results {
        Results { harvest_deadline_seconds, ..Results::default() }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn logs_count_as_lost_shortly_before_the_ttl_can_delete_the_pods() {
        for (deadline, wait) in [(60, 54), (6_000, 5_400), (7 * DAY, 7 * DAY - 600)] {
            assert_eq!(lost_at(at(1_000), &results(deadline)), at(1_000 + i64::from(wait)), "{deadline}");
        }
        assert_eq!(lost_at(Timestamp::MAX, &results(60)), Timestamp::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn the_pauses_grow_up_to_a_limit_and_end_with_the_wait() {
        let retries = LogRetries::default();
        let lost_at = at(1_000_000);
        let mut pauses = Vec::new();
        for n in 1..=12 {
            let (failed, pause) = retries.postpone("j", lost_at, at(0));
            assert_eq!(failed, n);
            pauses.push(pause);
        }
        assert!(pauses[0] <= FIRST_HARVEST_PAUSE && pauses[2] > pauses[0], "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_HARVEST_PAUSE), "{pauses:?}");
        assert!(pauses[11] >= LONGEST_HARVEST_PAUSE / 2, "{pauses:?}");
        assert!(retries.is_waiting("j") && !retries.is_waiting("other"));
        let (_, last) = retries.postpone("j", lost_at, at(999_990));
        assert!(last <= Duration::from_secs(11), "{last:?}");
        tokio::time::advance(last).await;
        assert!(!retries.is_waiting("j"));
        retries.postpone("j", lost_at, at(0));
        tokio::time::advance(2 * FORGET_AFTER).await;
        retries.postpone("other", lost_at, at(0));
        assert_eq!(retries.0.lock().len(), 1, "the first one is forgotten");
        retries.forget("other");
        assert_eq!(retries.0.lock().len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_past_its_deadline_has_some_attempts_too() {
        let retries = LogRetries::default();
        let (lost_at, later) = (at(100), at(200));
        let mut harvests = 1;
        while retries.has_another("old", lost_at, later) {
            retries.postpone("old", lost_at, later);
            harvests += 1;
        }
        assert_eq!(harvests, MIN_HARVESTS);
        for _ in 0..100 {
            assert!(retries.has_another("j", lost_at, at(99)));
            retries.postpone("j", lost_at, at(99));
        }
        assert!(!retries.has_another("j", lost_at, lost_at));
    }
}
