//! Jobs that should have finished: all their pods have ended, or their deadline is over, and the watch has not said so.
//! They are read, so that an event that was never told, whoever lost it, costs no more than [`crate::runtime::resync::RESYNC`].

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use job_handler_shared::job::snapshot::JobSnapshot;

use crate::{
    harvest::{
        at_risk::{self, LEAD},
        pod_tracker::Followed,
    },
    jobs::patch,
    model::job_change::Uid,
    observe::context::Context,
};

/// Time between two looks. Who is overdue in two of them is read: controllers take a moment, too.
const LOOK: Duration = Duration::from_secs(10);
/// Jobs that are read per look: a bound on what Jobs cost whose pods wait to be tried again.
const AT_ONCE: usize = 50;

/// Looks for ever; only ever done by the leader, whose pods are followed.
pub async fn keep(context: Context, followed: Followed) {
    let mut before: BTreeSet<Uid> = BTreeSet::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let now = Timestamp::now();
        let (again, first): (Vec<_>, Vec<_>) = context
            .store
            .jobs()
            .into_iter()
            .filter(|job| is_asked_for(&context, job) && is_overdue(job, &followed, now))
            .partition(|job| before.contains(&job.uid));
        // Those that there was no time for are the first ones in the next look.
        let late = again.iter().skip(AT_ONCE);
        before = first.iter().chain(late).map(|job| job.uid.clone()).collect();
        for job in again.into_iter().take(AT_ONCE) {
            read(&context, &job).await;
        }
    }
}

fn is_asked_for(context: &Context, job: &JobSnapshot) -> bool {
    job.finished.is_none()
        && job.started.is_some()
        && !job.suspended
        && context.store.effective(job).is_some_and(|effective| effective.results.is_some())
}

fn is_overdue(job: &JobSnapshot, followed: &Followed, now: Timestamp) -> bool {
    // Some seconds after the deadline: clocks are apart.
    let late = |near: Timestamp| near.checked_add(2 * LEAD).is_ok_and(|late| late <= now);
    let pods = followed.of_job(&job.uid);
    let ended = |uid: &Uid| {
        followed
            .view(uid)
            .is_none_or(|pod| pod.facts.gone || matches!(pod.facts.phase.as_str(), "Succeeded" | "Failed"))
    };
    at_risk::near(job).is_some_and(late) || (!pods.is_empty() && pods.iter().all(ended))
}

async fn read(context: &Context, job: &Arc<JobSnapshot>) {
    match patch::look(&context.client, job).await {
        Ok(Some(now)) if now.finished.is_some() => {
            // The watch may have told meanwhile.
            let known = context.store.job(&job.uid);
            if known.is_some_and(|known| known.finished.is_none()) {
                tracing::info!(job = job.key(), "has finished, which the watch did not say");
                context.job_seen(now, false);
            }
        }
        // It is gone, or not over: the watch has the last word.
        Ok(_) => {}
        Err(error) => tracing::debug!(job = job.key(), "not read: {error}"),
    }
}
