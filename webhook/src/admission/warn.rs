//! Mode Warn: what a policy would do if it were enforced is told, and nothing else.
//!
//! What it would stamp is told by `/mutate`, which knows all it takes. What it would refuse or queue is told by `/warn`:
//! webhook entries of its own, with `failurePolicy: Ignore` and a short timeout, so that nobody's Job ever waits for, or
//! hangs on, a policy that is only tried out. It never denies.
//!
//! Counts are about right, not exact: of the Jobs as they were watched, and of those that were asked about a moment ago.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    admission::{
        response::{Answer, Reply},
        review::{self, Review, Subject},
        state::State,
    },
    job_view::{self, JobView},
    limit::{
        Refused, failure_backoff, message,
        scopes::{LimitRules, Place, SlotHolder},
    },
    metrics::{Endpoint, Outcome},
    stamp::decide::{self, StampContext, StampDecision},
};
use jiff::Timestamp;
use job_handler_shared::job::stamped_annotation::{self, Explanation};
use job_handler_shared::{
    job::snapshot::JobSnapshot,
    keys,
    ledger::refusal::{Decision as Told, Refusal},
    policy::limit::WhenFull,
};

/// So long before the caller gives up an answer is sent.
const MARGIN: Duration = Duration::from_millis(300);
/// Entries that are told of what would be stamped: an author reads no more.
const MOST: usize = 8;

/// Answers one review, before `timeout` (the caller's) has passed.
pub async fn warn(bytes: &[u8], timeout: Duration, state: &State) -> Reply {
    let begun = Instant::now();
    let (reply, outcome) = answer(bytes, timeout, state).await;
    state.metrics.review(Endpoint::Warn, outcome, begun.elapsed());
    reply
}

async fn answer(bytes: &[u8], timeout: Duration, state: &State) -> (Reply, Outcome) {
    let review = match review::parse(bytes) {
        Ok(review) => review,
        Err(error) => return (Reply::text(400, error.to_string()), Outcome::Bad),
    };
    let job = match &review.subject {
        _ if state.is_excluded(&review.namespace) => None,
        Subject::Create(job) if job.snapshot.is_active() => Some(job.snapshot.clone()),
        Subject::Update { new, old } => job_view::newly_active(new, old),
        Subject::Create(_) | Subject::NotOurs(_) | Subject::Unreadable(_) => None,
    };
    let mut answer = Answer::default();
    if let Some(job) = job {
        let patience = timeout.saturating_sub(MARGIN);
        match tokio::time::timeout(patience, judge(&job, state)).await {
            Ok(Ok(Some((refused, when_full)))) => {
                answer.warnings.push(tell(&review, &job, refused, when_full, state));
            }
            Ok(Ok(None)) => {}
            Ok(Err(why)) => tracing::debug!(job = job.key(), "mode Warn: {why}"),
            Err(_) => tracing::debug!(job = job.key(), "mode Warn: not counted in time"),
        }
        if let Some(estimator) = state.estimator.as_ref().filter(|_| !review.dry_run) {
            estimator.add(JobSnapshot { created: Timestamp::now(), ..job });
        }
    }
    (answer.reply(&review.uid), Outcome::Allowed)
}

/// What a policy in mode Warn would have refused, and whether it would rather have queued it.
async fn judge(job: &JobSnapshot, state: &State) -> Result<Option<(Refused, WhenFull)>, String> {
    let Some(estimator) = state.estimator.as_ref().filter(|_| state.policies.synced()) else {
        return Ok(None);
    };
    let policies = state.policies.current().clone();
    let Some(as_if) = policies.as_if_enforced() else { return Ok(None) };
    if state.policies.namespace(&job.namespace).await.is_none() {
        return Err(format!("namespace {} is not known yet", job.namespace));
    }
    let namespaces = |name: &str| state.policies.known_namespace(name);
    let rules = LimitRules { policies: as_if, namespaces: &namespaces };
    let now = Timestamp::now();
    let warned = |cluster: bool| {
        let ours = rules.scopes(job).into_iter().filter(|(scope, _)| policies.warns(&scope.policy));
        ours.filter(|(scope, _)| (scope.place == Place::Cluster) == cluster).collect::<Vec<_>>()
    };
    let waits = rules
        .matching(job)
        .iter()
        .any(|policy| policies.warns(&policy.reference) && policy.spec.failure_backoff.is_some());
    for cluster in [false, true] {
        let scopes = warned(cluster);
        if scopes.is_empty() && (cluster || !waits) {
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
        if !cluster
            && waits
            && let Some(group) = failure_backoff::group(rules, job)
            && let runs = failure_backoff::runs(rules, &estimate.jobs, &job.namespace, &group)
            && let Some(refused) = failure_backoff::refuse(rules, &group, &runs, &estimate.ledger, job, now)
            // Where one that is enforced refuses, that is no warning.
            && policies.warns(&refused.policy)
        {
            let action = rules.matching(job).into_iter().find(|policy| policy.reference == refused.policy);
            let action =
                action.and_then(|policy| policy.spec.failure_backoff.as_ref()).map(|rule| rule.action);
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
        pending: false,
    }
}

/// Tells the sink, counts, and gives the warning.
fn tell(review: &Review, job: &JobSnapshot, refused: Refused, when_full: WhenFull, state: &State) -> String {
    let would = match when_full {
        WhenFull::Reject => "refused",
        WhenFull::Queue => "queued",
    };
    let message = format!("would be {would} (mode Warn): {}", refused.message);
    if !review.dry_run {
        state.tell(&format!("warn/{}", job.uid), || {
            state.metrics.would_refuse(refused.policy.to_string(), &refused.limit);
            Refusal {
                decision: Told::WouldRefuse,
                policy: refused.policy.clone(),
                limit: refused.limit.clone(),
                namespace: job.namespace.clone(),
                job: job.name.clone(),
                uid: job.uid.clone(),
                // It is let through.
                stored: true,
                owner: job.owner.clone(),
                message: message.clone(),
                at: Timestamp::now(),
            }
        });
    }
    format!("job-handler: this Job {message}")
}

/// What policies in mode Warn would have stamped besides what was decided.
pub fn stamping(
    review: &Review,
    job: &JobView,
    decision: &StampDecision,
    context: StampContext<'_>,
) -> Vec<String> {
    let Some(as_if) = context.policies.as_if_enforced() else { return Vec::new() };
    let context = StampContext { policies: as_if, ..context };
    let would = match &review.subject {
        Subject::Create(job) => decide::create(job, context),
        Subject::Update { new, old } => decide::update(new, old, context),
        Subject::NotOurs(_) | Subject::Unreadable(_) => return Vec::new(),
    };
    let account = |decision: &StampDecision| {
        // Where it is taken off, it was forged.
        let text = match decision.annotations.get(keys::STAMPED) {
            Some(own) => own.as_deref(),
            None => job.annotation(keys::STAMPED),
        };
        text.map(Explanation::parse).unwrap_or_default()
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
    account(&would)
        .beyond(&account(decision))
        .filter(|(key, _)| changes_job(key))
        .take(MOST)
        .map(|(key, what)| format!("job-handler: would be set (mode Warn): {key}: {what}"))
        .collect()
}
