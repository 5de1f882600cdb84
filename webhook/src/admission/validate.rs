//! `/validate`: limits. The commit point: whoever passes here takes a slot.
//!
//! Entries of the ValidatingWebhookConfiguration only select; the decision is made from all policies.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use job_handler_shared::{
    job::{scope::without_group, snapshot::JobSnapshot},
    ledger::refusal::{Decision, Refusal},
    policy::{effective::Effective, limit::WhenFull},
};

use crate::{
    admission::{
        response::{Answer, Denial, Reply},
        review::{self, Review, Subject},
        state::State,
    },
    job_view::{JobView, newly_active},
    limit::{Attempt, Verdict},
    metrics::{Endpoint, Outcome},
    stamp::select,
};

/// Answers one review, before `timeout` (the caller's) has passed.
pub async fn validate(bytes: &[u8], timeout: Duration, state: &State) -> Reply {
    let begun = Instant::now();
    let (reply, outcome) = answer(bytes, begun + timeout, state).await;
    state.metrics.review(Endpoint::Validate, outcome, begun.elapsed());
    reply
}

async fn answer(bytes: &[u8], answer_by: Instant, state: &State) -> (Reply, Outcome) {
    let review = match review::parse(bytes) {
        Ok(review) => review,
        Err(error) => return (Reply::text(400, error.to_string()), Outcome::Bad),
    };
    let (answer, outcome) = match &review.subject {
        Subject::NotOurs(why) => {
            (Answer::warned(format!("job-handler: no limit checked: {why}")), Outcome::Bad)
        }
        Subject::Unreadable(why) => {
            let why = format!("{why}; it cannot be counted, so it cannot pass a limit");
            (Answer::denied(Denial::bad_request(why)), Outcome::Bad)
        }
        _ if state.is_excluded(&review.namespace) => (Answer::default(), Outcome::Allowed),
        Subject::Create(job) => admit(create(&review, job, answer_by, state), state).await,
        Subject::Update { new, old } => admit(update(&review, new, old, answer_by), state).await,
    };
    (answer.reply(&review.uid), outcome)
}

fn create(review: &Review, job: &JobView, answer_by: Instant, state: &State) -> Option<Attempt> {
    let job = &job.snapshot;
    if !job.is_active() {
        // Created suspended: it takes no slot until somebody starts it.
        if job.is_queued() && !review.dry_run {
            tell_queued(job, state);
        }
        return None;
    }
    let (uid, dry_run) = (review.uid.clone(), review.dry_run);
    Some(Attempt { uid, job: job.clone(), from: None, dry_run, answer_by })
}

fn update(review: &Review, new: &JobView, old: &JobView, answer_by: Instant) -> Option<Attempt> {
    let job = newly_active(new, old)?;
    let (uid, dry_run) = (review.uid.clone(), review.dry_run);
    Some(Attempt { uid, job, from: Some(old.snapshot.resource_version.clone()), dry_run, answer_by })
}

/// Decides about an attempt, if there is one.
async fn admit(attempt: Option<Attempt>, state: &State) -> (Answer, Outcome) {
    let (Some(attempt), Some(limiter)) = (attempt, &state.limiter) else {
        return (Answer::default(), Outcome::Allowed);
    };
    let (job, dry_run, stored) = (attempt.job.clone(), attempt.dry_run, attempt.from.is_some());
    let verdict = if let Err(why) = can_decide(&job, state).await {
        Verdict::Unavailable { why, retry_after_seconds: 1 }
    } else {
        limiter.admit(attempt).await
    };
    match verdict {
        Verdict::Granted => (Answer::default(), Outcome::Allowed),
        Verdict::Refused(refused) => {
            if !dry_run {
                state.tell(&job.uid, || Refusal {
                    decision: Decision::Refused,
                    policy: refused.policy.clone(),
                    limit: refused.limit.clone(),
                    namespace: job.namespace.clone(),
                    job: job.name.clone(),
                    uid: job.uid.clone(),
                    stored,
                    owner: job.owner.clone(),
                    message: refused.message.clone(),
                    at: Timestamp::now(),
                });
            }
            let denied = Some(Denial::forbidden(refused.message));
            (Answer { denied, audit: refused.audit, ..Answer::default() }, Outcome::Refused)
        }
        Verdict::TooMany { why, retry_after_seconds } => {
            let why = format!("{why}; try again in {retry_after_seconds} s");
            (Answer::denied(Denial::too_many(why, retry_after_seconds)), Outcome::Unavailable)
        }
        Verdict::Unavailable { why, retry_after_seconds } => {
            let why =
                format!("job limits cannot be checked now: {why}; try again in {retry_after_seconds} s");
            (Answer::denied(Denial::unavailable(why, retry_after_seconds)), Outcome::Unavailable)
        }
    }
}

async fn can_decide(job: &JobSnapshot, state: &State) -> Result<(), String> {
    if !state.policies.synced() {
        return Err("the policies are not loaded yet".to_owned());
    }
    if !state.liveness.is_live() {
        return Err("this replica lost its Lease, since it cannot reach the apiserver".to_owned());
    }
    match state.policies.namespace(&job.namespace).await {
        Some(_) => Ok(()),
        None => Err(format!("namespace {} is not known yet", job.namespace)),
    }
}

fn tell_queued(job: &JobSnapshot, state: &State) {
    let policies = state.policies.current();
    let labels = state.policies.known_namespace(&job.namespace).unwrap_or_default();
    let matching = select::enforced(&policies, &job.namespace, &labels, &without_group(&job.labels));
    let limits = Effective::of(matching, &job.labels).limits;
    let Some(limit) = limits.into_iter().find(|limit| limit.value.when_full == WhenFull::Queue) else {
        return;
    };
    state.tell(&job.uid, || Refusal {
        decision: Decision::Queued,
        message: format!(
            "queued: waits for a slot (limit \"{}\" of {}, max allowed: {})",
            limit.value.name, limit.policy, limit.value.max_active_jobs
        ),
        policy: limit.policy,
        limit: limit.value.name,
        namespace: job.namespace.clone(),
        job: job.name.clone(),
        uid: job.uid.clone(),
        stored: true,
        owner: job.owner.clone(),
        at: Timestamp::now(),
    });
}
