//! How a Job should look: (Job, policies, time) -> decision. Pure.
//!
//! A decision states the desired values. [`crate::stamp::patch`] turns differences into operations, so a decision about
//! an already stamped Job changes nothing.
//!
//! Facts about the apiserver behind it (`webhook/README.md`, "Facts about the apiserver"; Kubernetes 1.36
//! `pkg/apis/batch/v1/defaults.go`): an absent `backoffLimit` arrives as 6, or as MaxInt32 with `backoffLimitPerIndex`; a
//! Job without labels has inherited those of its template; TTL and deadline arrive absent.

use std::{borrow::Cow, collections::BTreeMap};

use jiff::Timestamp;
use job_handler_shared::{
    job::{
        scope::without_group_label,
        stamped_annotation::{self, StampedAnnotation},
    },
    keys,
    policy::{reference::Labels, set::PolicySet},
};

use crate::{
    job_view::JobView,
    stamp::{
        container_resources::StampedResources,
        select::{self, SelectedPolicies},
    },
};

/// The inputs of a decision besides the Job.
#[derive(Clone, Copy, Debug)]
pub struct StampContext<'a> {
    /// All policies.
    pub policies: &'a PolicySet,
    /// Labels of the Job's namespace.
    pub namespace_labels: &'a Labels,
    /// The current time.
    pub now: Timestamp,
}

/// The desired values of a Job's fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StampDecision {
    /// `spec.ttlSecondsAfterFinished`.
    pub(crate) ttl: FieldValue,
    /// `spec.activeDeadlineSeconds`.
    pub(crate) deadline: FieldValue,
    /// `spec.backoffLimit`.
    pub(crate) backoff_limit: FieldValue,
    /// Set `spec.suspend` to true.
    pub suspend: bool,
    /// Labels of the Job; `None` removes the key.
    pub labels: BTreeMap<String, Option<String>>,
    /// Labels of the pod template; `None` removes the key.
    pub(crate) pod_labels: BTreeMap<String, Option<String>>,
    /// Annotations of the Job; `None` removes the key.
    pub annotations: BTreeMap<&'static str, Option<String>>,
    /// Requests and limits for containers that have none.
    pub(crate) containers: Option<StampedResources>,
    /// Warnings for the client.
    pub warnings: Vec<String>,
}

/// The desired value of one number in the Job's spec.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FieldValue {
    /// Leave the field as it is.
    #[default]
    Unchanged,
    /// Set the field to this value; `None` removes it.
    Set(Option<i64>),
}

/// Decides about a create. A Job that no enforced policy selects is not changed, with one exception: if it was copied
/// from a queued Job, the queue annotation is removed, because the sink releases Jobs that have it.
pub fn create(job: &JobView, context: StampContext<'_>) -> StampDecision {
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
        // The Job may be our own output. Remove the labels that the annotation claims; if stamping adds them again, the
        // claim is true.
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
        let is_added_again = |claim: &stamped_annotation::ClaimedLabel| {
            let is = |labels: &BTreeMap<String, Option<String>>| {
                labels.get(&claim.key).and_then(Option::as_ref) == Some(&claim.value)
            };
            (!claim.on_job || is(&decision.labels)) && (!claim.on_pods || is(&decision.pod_labels))
        };
        if claimed.iter().all(is_added_again) {
            return decision;
        }
    }
    stamp(job, &job.snapshot.labels, &job.template.labels, &claims, context)
}

/// Decides about an update: TTL, deadline and backoff limit are settled again if the update changes them. All other
/// fields stay as they are.
pub fn update(new: &JobView, old: &JobView, context: StampContext<'_>) -> StampDecision {
    let mut decision = StampDecision::default();
    let (after, before) = (&new.snapshot, &old.snapshot);
    let ttl_changed = after.ttl != before.ttl;
    let deadline_changed = after.deadline != before.deadline;
    let backoff_changed = after.backoff_limit != before.backoff_limit;
    if !(ttl_changed || deadline_changed || backoff_changed) {
        return decision;
    }
    let SelectedPolicies { policies, effective, .. } =
        select::for_stamping(context.policies, &after.namespace, context.namespace_labels, &after.labels);
    if policies.is_empty() {
        return decision;
    }
    let claims = claims(new);
    // A client that replaces the full object drops our annotation. The stored one is still valid for the other fields.
    let mut text = if claims.is_empty() { self::claims(old) } else { claims.clone() };
    if deadline_changed {
        decision.stamp_deadline(new, &effective, &claims, &mut text);
    }
    if backoff_changed {
        decision.stamp_backoff_limit(new, &effective, &claims, &mut text);
    }
    if ttl_changed {
        if before.finished.is_some() && is_harvested(new) {
            decision.stamp_harvested_ttl(new, old, &effective);
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

fn claims(job: &JobView) -> StampedAnnotation {
    job.annotation(keys::STAMPED).map(StampedAnnotation::parse).unwrap_or_default()
}

/// Whether the Job has both annotations of a harvested Job. The TTL of a finished, harvested Job is no longer relocated.
///
/// The check looks at the annotations, not at the author of the update, because one patch of the sink sets both
/// annotations and the TTL. The policy `job-handler-marks` lets only the sink set them. Where it is not installed, a user who
/// may update the Job can; the only gain is that the Job is deleted before its result is stored, which the same user can do
/// by deleting it. On a running Job, the annotations mean nothing.
pub(super) fn is_harvested(job: &JobView) -> bool {
    [keys::STATUS, keys::RESULTS].iter().all(|key| job.annotation(key).is_some_and(|value| !value.is_empty()))
}

fn stamp(
    job: &JobView,
    labels: &Labels,
    pod_labels: &Labels,
    claims: &StampedAnnotation,
    context: StampContext<'_>,
) -> StampDecision {
    let mut decision = StampDecision::default();
    let (mut labels, pod_labels) = (without_group_label(labels), &*without_group_label(pod_labels));
    // A forged group label may be the only one. Our patch removes it, and the API's defaulting then runs again.
    let inherits = labels.is_empty() && !pod_labels.is_empty();
    if inherits {
        labels = Cow::Borrowed(pod_labels);
    }
    let snapshot = &job.snapshot;
    let selected =
        select::for_stamping(context.policies, &snapshot.namespace, context.namespace_labels, &labels);
    let effective = &selected.effective;
    if selected.policies.is_empty() {
        decision.remove_queue_annotations(job);
        return decision;
    }
    if inherits {
        decision.labels.extend(labels.iter().map(|(key, value)| (key.clone(), Some(value.clone()))));
    }
    let mut text = StampedAnnotation::default();
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
    let untouched = text.is_empty() && selected.policies.iter().all(|policy| policy.never_changes_jobs());
    if text.is_empty() {
        let policies: Vec<String> =
            selected.policies.iter().map(|policy| policy.reference.to_string()).collect();
        text.set(stamped_annotation::NOTHING, format_args!("selected by {}", policies.join(", ")));
    }
    decision.annotations.insert(keys::STAMPED, (!untouched).then(|| text.text()));
    // A new Job is not harvested yet, even if it was copied from a harvested one.
    decision.annotations.insert(keys::STATUS, None);
    decision.annotations.insert(keys::RESULTS, None);
    decision
}
