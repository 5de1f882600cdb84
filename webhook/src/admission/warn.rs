//! `/warn`: reports what a policy in mode Warn would do if it were enforced. Never denies.
//!
//! `/mutate` reports what the policy would stamp. `/warn` reports what it would refuse or queue; it has webhook entries of its
//! own, with `failurePolicy: Ignore` and a short timeout, so that a trial policy never blocks a Job.
//!
//! Counts are estimates: see `job_estimator.rs`.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use job_handler_shared::{
    job::{
        snapshot::JobSnapshot,
        stamped_annotation::{self, StampedAnnotation},
        trim::SpareLabels,
    },
    keys,
    ledger::refusal::{Refusal, RefusalKind},
    policy::limit::WhenFull,
};

use crate::{
    admission::{
        endpoint::answer_review,
        job_estimator::JobEstimator,
        object_limits::impossible_field,
        response::{AdmissionResponse, HttpReply},
        review::{AdmissionReview, ReviewedObject},
        state::WebhookState,
    },
    job_view::{self, JobView},
    limit::{
        Refused, failure_backoff, message,
        scopes::{HolderKind, LimitRules, ScopeDomain, SlotHolder},
    },
    metrics::{Endpoint, ReviewVerdict},
    stamp::decide::{self, StampContext, StampDecision},
};

/// The response is sent this long before the caller gives up.
const TIMEOUT_MARGIN: Duration = Duration::from_millis(300);
/// Most warnings about what would be stamped.
const MAX_STAMP_WARNINGS: usize = 8;

/// Answers one review within `timeout`, after which the caller gives up.
pub async fn warn(body: impl AsRef<[u8]>, timeout: Duration, state: &WebhookState) -> HttpReply {
    answer_review(Endpoint::Warn, body, state, async |review| {
        let response = answer(&review, timeout, state).await;
        (response.reply(&review.uid), ReviewVerdict::Allowed)
    })
    .await
}

async fn answer(review: &AdmissionReview, timeout: Duration, state: &WebhookState) -> AdmissionResponse {
    let mut response = AdmissionResponse::default();
    let job = match &review.object {
        _ if state.is_excluded(&review.namespace) => None,
        ReviewedObject::Create(job) if job.snapshot.is_active() => Some(job.snapshot.clone()),
        ReviewedObject::Update { new, old } => job_view::newly_active(new, old),
        ReviewedObject::Create(_) | ReviewedObject::Unsupported(_) | ReviewedObject::Unreadable(_) => None,
    };
    let job = job.filter(|job| impossible_field(&review.uid, job).is_none()).map(|mut job| {
        let keys = state.policies.current().label_keys().of(&job.namespace).clone();
        job.trim(&keys, SpareLabels::SOME);
        job
    });
    let (Some(job), Some(estimator)) = (job, &state.estimator) else { return response };
    let timeout = timeout.saturating_sub(TIMEOUT_MARGIN);
    match tokio::time::timeout(timeout, would_refuse(&job, estimator, state)).await {
        Ok(Ok(Some((refused, when_full)))) => {
            response.warnings.push(report(review, &job, refused, when_full, state));
        }
        Ok(Ok(None)) => {}
        Ok(Err(why)) => tracing::debug!("limits of policies in mode Warn were not checked: {why}"),
        Err(_) => tracing::debug!("limits of policies in mode Warn were not checked in time"),
    }
    if !review.dry_run && state.policies.current().as_if_enforced().is_some() {
        estimator.add(JobSnapshot { created: Timestamp::now(), ..job });
    }
    response
}

/// What a policy in mode Warn would refuse, and whether it would queue the Job instead.
async fn would_refuse(
    job: &JobSnapshot,
    estimator: &JobEstimator,
    state: &WebhookState,
) -> Result<Option<(Refused, WhenFull)>, String> {
    if !state.policies.synced() {
        return Ok(None);
    }
    let policies = state.policies.current().clone();
    let Some(as_if_enforced) = policies.as_if_enforced() else { return Ok(None) };
    if state.policies.namespace(&job.namespace).await.is_none() {
        return Err(format!("namespace {} is not known yet", job.namespace));
    }
    let namespaces = |name: &str| state.policies.known_namespace(name);
    let rules = LimitRules { policies: as_if_enforced, namespaces: &namespaces };
    let now = Timestamp::now();
    let scopes_in_warn = |cluster: bool| {
        let scopes = rules.scopes(job).into_iter().filter(|(scope, _)| policies.warns(&scope.policy));
        scopes.filter(|(scope, _)| (scope.domain == ScopeDomain::Cluster) == cluster).collect::<Vec<_>>()
    };
    let has_backoff = rules
        .matching(job)
        .iter()
        .any(|policy| policies.warns(&policy.reference) && policy.spec.failure_backoff.is_some());
    for cluster in [false, true] {
        let scopes = scopes_in_warn(cluster);
        let checks_backoff = !cluster && has_backoff;
        if scopes.is_empty() && !checks_backoff {
            continue;
        }
        let estimate = estimator.estimate((!cluster).then_some(job.namespace.as_str()))?;
        for (scope, limit) in scopes {
            let mut holders: BTreeMap<String, SlotHolder> = BTreeMap::new();
            for other in estimate.jobs.iter().filter(|other| other.is_active() && other.key() != job.key()) {
                if rules.scopes(other).iter().any(|(theirs, _)| *theirs == scope) {
                    holders.insert(other.key(), holder(other));
                }
            }
            if holders.len() >= limit.max_active_jobs as usize {
                return Ok(Some((message::full(&scope, limit, &holders, now), limit.when_full)));
            }
        }
        if checks_backoff
            && let Some(group) = failure_backoff::group(rules, job)
            && let runs = failure_backoff::runs(rules, &estimate.jobs, &job.namespace, &group)
            && let Some(refused) = failure_backoff::refuse(rules, &group, &runs, &estimate.ledger, job, now)
            // An enforced policy refuses in `/validate`; here only policies in mode Warn count.
            && policies.warns(&refused.policy)
        {
            let policy = rules.matching(job).into_iter().find(|policy| policy.reference == refused.policy);
            let action =
                policy.and_then(|policy| policy.spec.failure_backoff.as_ref()).map(|rule| rule.action);
            return Ok(Some((refused, action.unwrap_or_default())));
        }
    }
    Ok(None)
}

fn holder(job: &JobSnapshot) -> SlotHolder {
    SlotHolder {
        namespace: job.namespace.clone(),
        name: job.name.clone(),
        since: job.created,
        kind: HolderKind::Running,
    }
}

/// Reports to the sink, counts, and returns the warning.
fn report(
    review: &AdmissionReview,
    job: &JobSnapshot,
    refused: Refused,
    when_full: WhenFull,
    state: &WebhookState,
) -> String {
    let would = match when_full {
        WhenFull::Reject => "refused",
        WhenFull::Queue => "queued",
    };
    let message = format!("would be {would} (mode Warn): {}", refused.message);
    if !review.dry_run {
        state.report_once(&format!("warn/{}", job.uid), || {
            state.metrics.would_refuse(refused.policy.to_string(), &refused.limit);
            // The Job is admitted, and so stored.
            Refusal::of_job(job, RefusalKind::WouldRefuse, true, &refused.policy, &refused.limit, &message)
        });
    }
    format!("job-handler: this Job {message}")
}

/// Warnings about what policies in mode Warn would stamp in addition to `decision`.
pub(super) fn stamp_warnings(
    review: &AdmissionReview,
    job: &JobView,
    decision: &StampDecision,
    context: StampContext<'_>,
) -> Vec<String> {
    let Some(as_if_enforced) = context.policies.as_if_enforced() else { return Vec::new() };
    let context = StampContext { policies: as_if_enforced, ..context };
    let would = match &review.object {
        ReviewedObject::Create(job) => decide::create(job, context),
        ReviewedObject::Update { new, old } => decide::update(new, old, context),
        ReviewedObject::Unsupported(_) | ReviewedObject::Unreadable(_) => return Vec::new(),
    };
    let explanation = |decision: &StampDecision| {
        // A decision that removes the annotation has found a forged one.
        let text = match decision.annotations.get(keys::STAMPED) {
            Some(own) => own.as_deref(),
            None => job.annotation(keys::STAMPED),
        };
        text.map(StampedAnnotation::parse).unwrap_or_default()
    };
    let changes_job = |key: &str| {
        !matches!(
            key,
            stamped_annotation::NOTHING
                | stamped_annotation::QUEUED
                | stamped_annotation::OPT_OUT
                | stamped_annotation::GROUP
        )
    };
    explanation(&would)
        .entries_not_in(&explanation(decision))
        .filter(|(key, _)| changes_job(key))
        .take(MAX_STAMP_WARNINGS)
        .map(|(key, what)| format!("job-handler: would be set (mode Warn): {key}: {what}"))
        .collect()
}
