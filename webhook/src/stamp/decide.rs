//! What becomes of a Job: (Job, policies, clock) -> decision. Pure.
//!
//! A decision says how the Job should be; [`crate::stamp::patch`] turns what differs into operations. So on its own output a
//! decision changes nothing.
//!
//! Facts that shape it (DESIGN §5; Kubernetes 1.36 `pkg/apis/batch/v1/defaults.go`): an absent `backoffLimit` arrives
//! as 6, or as MaxInt32 beside `backoffLimitPerIndex`; a Job without labels has inherited its template's; TTL and
//! deadline arrive absent.

use std::{borrow::Cow, collections::BTreeMap};

use jiff::Timestamp;
use job_handler_shared::{
    keys,
    policy::set::{Labels, PolicySet},
};

use crate::{
    admission::job_view::JobView,
    stamp::{
        container_resources::Stamped,
        select::{self, Selected},
    },
};
use job_handler_shared::job::stamped_annotation::{self, Explanation};

/// What decisions rest on besides the Job.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// All policies.
    pub policies: &'a PolicySet,
    /// Labels of the Job's namespace.
    pub namespace_labels: &'a Labels,
    /// The clock.
    pub now: Timestamp,
}

/// How a Job should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// `spec.ttlSecondsAfterFinished`.
    pub ttl: Field,
    /// `spec.activeDeadlineSeconds`.
    pub deadline: Field,
    /// `spec.backoffLimit`.
    pub backoff_limit: Field,
    /// `spec.suspend` is to be true.
    pub suspend: bool,
    /// Labels; `None` = none of that key.
    pub labels: BTreeMap<String, Option<String>>,
    /// Labels of the pod template.
    pub pod_labels: BTreeMap<String, Option<String>>,
    /// Annotations.
    pub annotations: BTreeMap<&'static str, Option<String>>,
    /// Requests and limits for containers that state none.
    pub containers: Option<Stamped>,
    /// For the author.
    pub warnings: Vec<String>,
}

/// How one field should be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Field {
    /// As it is.
    #[default]
    Keep,
    /// This, or absent.
    Be(Option<i64>),
}

/// Decides about a new Job. A Job that no enforced policy selects stays as it is, to the last byte, but for the mark of
/// a queued Job that it was copied with: with that mark the sink would start it.
pub fn create(job: &JobView, context: Context<'_>) -> Decision {
    let claims = claims(job);
    let claimed: Vec<_> = claims
        .claimed_labels()
        .into_iter()
        .filter(|claim| {
            let is = |labels: &Labels| labels.get(&claim.key) == Some(&claim.value);
            (!claim.on_job || is(&job.snapshot.labels)) && (!claim.on_pods || is(&job.template.labels))
        })
        .collect();
    if !claimed.is_empty() {
        // Our own output, as it seems: take the added labels off again, and believe it if they come back.
        let (mut labels, mut pod_labels) = (job.snapshot.labels.clone(), job.template.labels.clone());
        for claim in &claimed {
            if claim.on_job {
                labels.remove(&claim.key);
            }
            if claim.on_pods {
                pod_labels.remove(&claim.key);
            }
        }
        let decision = stamp(job, &labels, &pod_labels, &claims, context);
        let back = |claim: &stamped_annotation::ClaimedLabel| {
            let is = |labels: &BTreeMap<String, Option<String>>| {
                labels.get(&claim.key).and_then(Option::as_ref) == Some(&claim.value)
            };
            (!claim.on_job || is(&decision.labels)) && (!claim.on_pods || is(&decision.pod_labels))
        };
        if claimed.iter().all(back) {
            return decision;
        }
    }
    stamp(job, &job.snapshot.labels, &job.template.labels, &claims, context)
}

/// Decides about a changed Job: what of TTL, deadline and retries the change touches is settled anew, the rest stays.
pub fn update(new: &JobView, old: &JobView, context: Context<'_>) -> Decision {
    let mut decision = Decision::default();
    let (after, before) = (&new.snapshot, &old.snapshot);
    let ttl_changed = after.ttl != before.ttl;
    let deadline_changed = after.deadline != before.deadline;
    let backoff_changed = after.backoff_limit != before.backoff_limit;
    if !(ttl_changed || deadline_changed || backoff_changed) {
        return decision;
    }
    let Selected { by, effective, .. } =
        select::for_stamping(context.policies, &after.namespace, context.namespace_labels, &after.labels);
    if by.is_empty() {
        return decision;
    }
    let claims = claims(new);
    // A client that replaces the whole object drops our text; what it says of other fields still holds.
    let mut text = if claims.is_empty() { self::claims(old) } else { claims.clone() };
    if deadline_changed {
        decision.stamp_deadline(new, &effective, &claims, &mut text);
    }
    if backoff_changed {
        decision.stamp_backoff_limit(new, &effective, &claims, &mut text);
    }
    if ttl_changed {
        if before.finished.is_some() && is_marked(new) {
            decision.guard_armed_ttl(new, old, &effective);
        } else {
            decision.stamp_ttl(new, &effective, &claims, &mut text);
        }
    }
    if text.has(stamped_annotation::NOTHING)
        && [stamped_annotation::TTL, stamped_annotation::DEADLINE, stamped_annotation::BACKOFF]
            .iter()
            .any(|k| text.has(k))
    {
        text.remove(stamped_annotation::NOTHING);
    }
    if !text.is_empty() {
        decision.annotations.insert(keys::STAMPED, Some(text.text()));
    }
    decision
}

fn claims(job: &JobView) -> Explanation {
    job.annotation(keys::STAMPED).map(Explanation::parse).unwrap_or_default()
}

/// A finished Job that carries both marks of the harvest: its TTL is armed, or taken off, and is no longer moved away.
///
/// Recognised by the marks, not by who writes: the sink's own patch sets marks and TTL in one. Whoever may change a
/// finished Job can forge them; they gain that the Job goes early without its result, which by deleting it they can have
/// at any time. On a Job that still runs the marks mean nothing.
pub(super) fn is_marked(job: &JobView) -> bool {
    [keys::STATUS, keys::RESULTS].iter().all(|key| job.annotation(key).is_some_and(|value| !value.is_empty()))
}

fn stamp(
    job: &JobView,
    labels: &Labels,
    pod_labels: &Labels,
    claims: &Explanation,
    context: Context<'_>,
) -> Decision {
    let mut decision = Decision::default();
    let (mut labels, pod_labels) = (select::without_group(labels), &*select::without_group(pod_labels));
    // Also where only a forged group was there: it goes, and the API's defaulting runs again after our patch.
    let inherits = labels.is_empty() && !pod_labels.is_empty();
    if inherits {
        labels = Cow::Borrowed(pod_labels);
    }
    let snapshot = &job.snapshot;
    let selected =
        select::for_stamping(context.policies, &snapshot.namespace, context.namespace_labels, &labels);
    let effective = &selected.effective;
    if selected.by.is_empty() {
        decision.forget_queue(job);
        return decision;
    }
    if inherits {
        decision.labels.extend(labels.iter().map(|(key, value)| (key.clone(), Some(value.clone()))));
    }
    let mut text = Explanation::default();
    decision.stamp_ttl(job, effective, claims, &mut text);
    decision.stamp_deadline(job, effective, claims, &mut text);
    decision.stamp_backoff_limit(job, effective, claims, &mut text);
    decision.stamp_labels(&labels, pod_labels, effective, &mut text);
    decision.stamp_containers(job, effective, claims, &mut text);
    decision.stamp_group(job, &selected, &mut text);
    decision.queue(job, &selected, claims, context.now, &mut text);
    if selected.labels.get(keys::ENABLED).is_some_and(|value| value == "false") {
        text.set(
            stamped_annotation::OPT_OUT,
            "of defaults, harvest and prune (label job-handler/enabled: \"false\")",
        );
    }
    let untouched = text.is_empty() && selected.by.iter().all(|policy| policy.leaves_jobs_alone());
    if text.is_empty() {
        let by: Vec<String> = selected.by.iter().map(|policy| policy.reference.to_string()).collect();
        text.set(stamped_annotation::NOTHING, format_args!("selected by {}", by.join(", ")));
    }
    decision.annotations.insert(keys::STAMPED, (!untouched).then(|| text.text()));
    // A new Job was never harvested, whatever it was copied from.
    decision.annotations.insert(keys::STATUS, None);
    decision.annotations.insert(keys::RESULTS, None);
    decision
}
