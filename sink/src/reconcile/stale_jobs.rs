//! Finds Jobs that should have finished, because all their pods have ended or their deadline has passed, although the
//! watch has not reported it, and reads them: a lost watch event costs at most
//! [`RESYNC`](crate::runtime::resync::RESYNC).

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use jiff::Timestamp;
use job_handler_shared::job::snapshot::JobSnapshot;

use crate::{
    harvest::{at_risk, pod_tracker::PodTracker, tuning::DEADLINE_LEAD},
    jobs::patch,
    model::job_change::Uid,
    observe::context::Context,
};

/// Interval of the search. A Job that is overdue twice in a row is read: the Job controller takes a moment, too.
const INTERVAL: Duration = Duration::from_secs(10);
/// Jobs read per search: limits the cost of Jobs that wait to retry their pods.
const MAX_READS: usize = 50;

/// Searches until it is dropped; only on the leader, which watches pods.
pub(crate) async fn run(context: Context, pod_tracker: PodTracker) -> Infallible {
    let mut before: BTreeSet<Uid> = BTreeSet::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = Timestamp::now();
        let (again, first): (Vec<_>, Vec<_>) = context
            .store
            .jobs()
            .into_iter()
            .filter(|job| has_result_policy(&context, job) && is_overdue(job, &pod_tracker, now))
            .partition(|job| before.contains(&job.uid));
        // The rest is read after the next search.
        let late = again.iter().skip(MAX_READS);
        before = first.iter().chain(late).map(|job| job.uid.clone()).collect();
        for job in again.into_iter().take(MAX_READS) {
            read(&context, &job).await;
        }
    }
}

fn has_result_policy(context: &Context, job: &JobSnapshot) -> bool {
    job.finished.is_none()
        && job.started.is_some()
        && !job.suspended
        && context.store.effective(job).is_some_and(|effective| effective.results.is_some())
}

fn is_overdue(job: &JobSnapshot, pod_tracker: &PodTracker, now: Timestamp) -> bool {
    // Some seconds after the deadline, because clocks differ.
    let late = |near: Timestamp| near.checked_add(2 * DEADLINE_LEAD).is_ok_and(|late| late <= now);
    let pods = pod_tracker.pods_of_job(&job.uid);
    let ended = |uid: &Uid| {
        pod_tracker
            .view(uid)
            .is_none_or(|pod| pod.facts.gone || matches!(pod.facts.phase.as_str(), "Succeeded" | "Failed"))
    };
    at_risk::at_risk_from(job).is_some_and(late) || (!pods.is_empty() && pods.iter().all(ended))
}

async fn read(context: &Context, job: &Arc<JobSnapshot>) {
    match patch::get_current(&context.client, job).await {
        Ok(Some(now)) if now.finished.is_some() => {
            // The watch may have reported it meanwhile.
            let known = context.store.job(&job.uid);
            if known.is_some_and(|known| known.finished.is_none()) {
                tracing::info!(job = job.key(), "the Job has finished, and the watch missed it");
                context.job_seen(now, false);
            }
        }
        // Deleted or still running: the watch reports it.
        Ok(_) => {}
        Err(error) => tracing::debug!(job = job.key(), "cannot read an overdue Job: {error}"),
    }
}
