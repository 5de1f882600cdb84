//! `/validate`: checks limits. A Job that passes takes a slot.
//!
//! The entries of the ValidatingWebhookConfiguration only select Jobs. The decision uses all policies.

use std::time::{Duration, Instant};

use job_handler_shared::{
    job::{
        scope::without_group_label,
        snapshot::JobSnapshot,
        trim::{MAX_NAMED_LABELS, SpareLabels},
    },
    ledger::refusal::{Refusal, RefusalKind},
    policy::{effective::EffectivePolicy, limit::WhenFull},
};

use crate::{
    admission::{
        endpoint::answer_review,
        object_limits::impossible_field,
        response::{AdmissionResponse, Denial, HttpReply},
        review::{AdmissionReview, ReviewedObject},
        state::WebhookState,
    },
    job_view::{JobView, changes_scope, leaves_orphans, newly_active},
    limit::{Attempt, EarlierSlots, Limiter, Refused, Verdict},
    metrics::{Endpoint, ReviewVerdict},
    stamp::select,
};

/// Answers one review within `timeout`, after which the caller gives up.
pub async fn validate(body: impl AsRef<[u8]>, timeout: Duration, state: &WebhookState) -> HttpReply {
    let deadline = Instant::now() + timeout;
    answer_review(Endpoint::Validate, body, state, async |review| {
        let uid = review.uid.clone();
        let (response, verdict) = match (read(review, deadline, state), &state.limiter) {
            (ReadReview::Answered(response, verdict), _) => (*response, verdict),
            (ReadReview::Attempt(attempt), Some(limiter)) => admit(*attempt, &**limiter, state).await,
            (ReadReview::Attempt(_), None) => (AdmissionResponse::default(), ReviewVerdict::Allowed),
        };
        (response.reply(&uid), verdict)
    })
    .await
}

/// What is left of a review. Its body and all else that it contained are gone while it waits for a decision.
enum ReadReview {
    /// The answer does not depend on limits.
    Answered(Box<AdmissionResponse>, ReviewVerdict),
    /// To be decided about.
    Attempt(Box<Attempt>),
}

fn read(review: AdmissionReview, deadline: Instant, state: &WebhookState) -> ReadReview {
    let bad = |response| ReadReview::Answered(Box::new(response), ReviewVerdict::Bad);
    let is_excluded = state.is_excluded(&review.namespace);
    let job = review.object.job().filter(|_| !is_excluded);
    if let Some(field) = job.and_then(|job| impossible_field(&review.uid, &job.snapshot)) {
        let why = format!("{field} is not within the limits of Kubernetes");
        return bad(AdmissionResponse::denied(Denial::bad_request(why)));
    }
    let attempt = match &review.object {
        ReviewedObject::Unsupported(why) => {
            return bad(AdmissionResponse::warned(format!("job-handler: no limit checked: {why}")));
        }
        ReviewedObject::Unreadable(why) => {
            let why = format!("{why}; it cannot be counted, so it cannot pass a limit");
            return bad(AdmissionResponse::denied(Denial::bad_request(why)));
        }
        _ if is_excluded => None,
        ReviewedObject::Create(job) => create_attempt(&review, job, deadline, state),
        ReviewedObject::Update { new, old } => update_attempt(&review, new, old, deadline),
    };
    match attempt {
        None => ReadReview::Answered(Box::default(), ReviewVerdict::Allowed),
        Some(mut attempt) => {
            let policies = state.policies.current();
            let keys = policies.label_keys().of(&attempt.job.namespace).clone();
            attempt.job.trim(&keys, SpareLabels::SOME);
            if let EarlierSlots::Left(stored) = &mut attempt.earlier_slots {
                stored.trim(&keys, SpareLabels::SOME);
            }
            // Such a Job counts nowhere, so that it may go.
            if attempt.job.has_cut_labels && attempt.earlier_slots == EarlierSlots::Orphaned {
                return ReadReview::Answered(Box::default(), ReviewVerdict::Allowed);
            }
            if attempt.job.has_cut_labels {
                let why = format!(
                    "its labels that policies name take more than {} KiB, so it cannot be counted",
                    MAX_NAMED_LABELS >> 10
                );
                return bad(AdmissionResponse::denied(Denial::bad_request(why)));
            }
            ReadReview::Attempt(Box::new(attempt))
        }
    }
}

fn create_attempt(
    review: &AdmissionReview,
    job: &JobView,
    deadline: Instant,
    state: &WebhookState,
) -> Option<Attempt> {
    let job = &job.snapshot;
    if !job.is_active() {
        // A Job that is created suspended takes a slot later, when it is resumed.
        if job.is_queued() && !review.dry_run {
            report_queued(job, state);
        }
        return None;
    }
    let (uid, dry_run) = (review.uid.clone(), review.dry_run);
    let earlier_slots = EarlierSlots::Nothing;
    Some(Attempt {
        uid,
        job: job.clone(),
        from: None,
        earlier_slots,
        dry_run,
        probe: false,
        answer_by: deadline,
    })
}

fn update_attempt(
    review: &AdmissionReview,
    new: &JobView,
    old: &JobView,
    deadline: Instant,
) -> Option<Attempt> {
    let stored = &old.snapshot;
    let (job, earlier_slots) = if leaves_orphans(new, old) {
        (stored.clone(), EarlierSlots::Orphaned)
    } else {
        let job = newly_active(new, old)?;
        let leaves = stored.is_active() && changes_scope(stored, &job);
        let left = leaves.then(|| EarlierSlots::Left(Box::new(stored.clone())));
        (job, left.unwrap_or_default())
    };
    let (uid, dry_run) = (review.uid.clone(), review.dry_run);
    let from = Some(stored.resource_version.clone());
    Some(Attempt { uid, job, from, earlier_slots, dry_run, probe: false, answer_by: deadline })
}

/// Asks the limiter about an attempt.
async fn admit(
    attempt: Attempt,
    limiter: &dyn Limiter,
    state: &WebhookState,
) -> (AdmissionResponse, ReviewVerdict) {
    let (job, dry_run, stored) = (attempt.job.clone(), attempt.dry_run, attempt.from.is_some());
    let verdict = if let Err(why) = can_decide(&job, state).await {
        Verdict::Unavailable { why, retry_after_seconds: 1 }
    } else {
        limiter.admit(attempt).await
    };
    match verdict {
        Verdict::Granted => (AdmissionResponse::default(), ReviewVerdict::Allowed),
        Verdict::Refused(refused) => {
            if !dry_run {
                state.report_once(&job.uid, || {
                    let Refused { policy, limit, message, .. } = &refused;
                    Refusal::of_job(&job, RefusalKind::Refused, stored, policy, limit, message)
                });
            }
            let denied = Some(Denial::forbidden(refused.message));
            let response = AdmissionResponse { denied, audit: refused.audit, ..AdmissionResponse::default() };
            (response, ReviewVerdict::Refused)
        }
        Verdict::TooMany { why, retry_after_seconds } => {
            let why = format!("{why}; try again in {retry_after_seconds} s");
            let denial = Denial::too_many(why, retry_after_seconds);
            (AdmissionResponse::denied(denial), ReviewVerdict::Unavailable)
        }
        Verdict::Unavailable { why, retry_after_seconds } => {
            let why =
                format!("job limits cannot be checked now: {why}; try again in {retry_after_seconds} s");
            let denial = Denial::unavailable(why, retry_after_seconds);
            (AdmissionResponse::denied(denial), ReviewVerdict::Unavailable)
        }
    }
}

async fn can_decide(job: &JobSnapshot, state: &WebhookState) -> Result<(), String> {
    if !state.policies.synced() {
        return Err("the policies are not loaded yet".to_owned());
    }
    if !state.liveness.is_live() {
        return Err("this replica lost its Lease, because it cannot reach the apiserver".to_owned());
    }
    match state.policies.namespace(&job.namespace).await {
        Some(_) => Ok(()),
        None => Err(format!("namespace {} is not known yet", job.namespace)),
    }
}

fn report_queued(job: &JobSnapshot, state: &WebhookState) {
    let policies = state.policies.current();
    let labels = state.policies.known_namespace(&job.namespace).unwrap_or_default();
    let matching = select::enforced(&policies, &job.namespace, &labels, &without_group_label(&job.labels));
    let limits = EffectivePolicy::combine(matching, &job.labels).limits;
    let Some(limit) = limits.into_iter().find(|limit| limit.value.when_full == WhenFull::Queue) else {
        return;
    };
    let (policy, name, max) = (&limit.policy, &limit.value.name, limit.value.max_active_jobs);
    state.report_once(&job.uid, || {
        let message =
            format!("queued until limit \"{name}\" of {policy} has a free slot (max allowed: {max})");
        Refusal::of_job(job, RefusalKind::Queued, true, policy, name, &message)
    });
}
