//! The patch that repairs a Job that the webhook missed. Pure.
//!
//! It never ends a Job that runs: it skips a deadline or a number of retries that is exceeded already.

use std::sync::Arc;

use jiff::Timestamp;
use job_handler_shared::{
    job::{
        queued_entry,
        scope::{ScopeKey, group_of_job},
        snapshot::JobSnapshot,
        stamped_annotation::{self, StampedAnnotation},
    },
    keys,
    policy::{
        effective::EffectivePolicy,
        parsed::Policy,
        range::{self, AbsentValue, ResolvedValue},
    },
};
use serde_json::{Map, Value, json};

use crate::model::text::whole_seconds;

/// The API's default of `backoffLimit`, which cannot be distinguished from an explicit 6.
const API_BACKOFF_LIMIT: i32 = 6;

/// The fields that a missed Job gets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RepairPatch {
    pub(crate) spec: Map<String, Value>,
    pub(crate) labels: Map<String, Value>,
    pub(crate) annotations: Map<String, Value>,
    /// The text of annotation `job-handler/stamped`.
    pub(crate) explanation: StampedAnnotation,
}

/// The patch of a missed Job. All of `policies` were in force before it was created; in order of precedence.
pub(crate) fn repair_patch(job: &JobSnapshot, policies: &[&Arc<Policy>], now: Timestamp) -> RepairPatch {
    let effective = EffectivePolicy::combine(policies.iter().copied(), &job.labels);
    let mut patch = RepairPatch {
        spec: Map::new(),
        labels: Map::new(),
        annotations: Map::new(),
        explanation: StampedAnnotation::default(),
    };
    patch.ttl(job, &effective);
    patch.deadline(job, &effective, now);
    patch.backoff_limit(job, &effective);
    for (key, label) in effective.labels.iter().filter(|(key, _)| !job.labels.contains_key(*key)) {
        patch.labels.insert(key.clone(), label.value.clone().into());
        patch.explanation.set_label(key, &label.value, true, false, &label.policy);
    }
    let group = group_of_job(policies, job);
    if let (Some(group), Some(by)) = (&group, &effective.group) {
        patch
            .explanation
            .set(stamped_annotation::GROUP, format_args!("{} (by {}, {})", group.value, group.by, by.policy));
    }
    let group = group.map(|group| group.value);
    if job.labels.get(keys::GROUP) != group.as_ref() {
        patch.labels.insert(keys::GROUP.to_owned(), json!(group));
    }
    if patch.explanation.is_empty() {
        let by: Vec<String> = policies.iter().map(|policy| policy.reference.to_string()).collect();
        patch.explanation.set(stamped_annotation::NOTHING, format_args!("selected by {}", by.join(", ")));
    }
    // On a Job that neither program has changed, these are forged.
    for key in [keys::QUEUED_AT, keys::STATUS, keys::RESULTS] {
        if job.annotations.contains_key(key) {
            patch.annotations.insert(key.to_owned(), Value::Null);
        }
    }
    patch
}

impl RepairPatch {
    fn ttl(&mut self, job: &JobSnapshot, effective: &EffectivePolicy) {
        let settled = range::resolve(job.ttl.map(i64::from), &effective.ttl, AbsentValue::Exempt);
        let harvest = effective.results.as_ref().map(|results| i64::from(results.harvest_deadline_seconds));
        self.explain(stamped_annotation::TTL, &settled);
        let spec = match (settled.value, harvest) {
            (Some(ttl), Some(deadline)) => {
                self.annotations.insert(keys::TTL.to_owned(), ttl.to_string().into());
                Some(ttl.max(deadline))
            }
            (ttl, _) => ttl,
        };
        if spec != job.ttl.map(i64::from) {
            self.spec.insert(stamped_annotation::TTL.to_owned(), json!(spec));
        }
    }

    fn deadline(&mut self, job: &JobSnapshot, effective: &EffectivePolicy, now: Timestamp) {
        let settled = range::resolve(job.deadline, &effective.deadline, AbsentValue::Unlimited);
        let Some(seconds) = settled.value.filter(|_| settled.changed()) else { return };
        let running = job.started.map_or(0, |started| now.as_second() - started.as_second());
        if running >= seconds {
            // Not under the field's own key, which the webhook parses.
            self.explanation.set(
                "no activeDeadlineSeconds",
                format_args!("{seconds} s have passed already, the Job keeps running"),
            );
            return;
        }
        self.explain(stamped_annotation::DEADLINE, &settled);
        self.spec.insert(stamped_annotation::DEADLINE.to_owned(), seconds.into());
    }

    fn backoff_limit(&mut self, job: &JobSnapshot, effective: &EffectivePolicy) {
        // With backoffLimitPerIndex it is MaxInt32.
        let Some(present) = job.backoff_limit.filter(|limit| *limit != i32::MAX) else { return };
        let is_kept = job
            .annotations
            .get(keys::KEEP)
            .is_some_and(|fields| fields.split(',').any(|field| field.trim() == stamped_annotation::BACKOFF));
        let default =
            effective.backoff_limit.default.as_ref().filter(|_| present == API_BACKOFF_LIMIT && !is_kept);
        let mut settled =
            range::resolve(Some(i64::from(present)), &effective.backoff_limit, AbsentValue::Exempt);
        if let Some(default) = default {
            settled.value = Some(default.value);
            settled.source = range::ValueSource::Default(default.policy.clone());
        }
        let Some(limit) = settled.value.filter(|_| settled.changed()) else { return };
        if i64::from(job.failed_pods) > limit {
            self.explanation.set(
                "no backoffLimit",
                format_args!("{} retries are used already, the Job keeps running", job.failed_pods),
            );
            return;
        }
        self.explain(stamped_annotation::BACKOFF, &settled);
        self.spec.insert(stamped_annotation::BACKOFF.to_owned(), limit.into());
    }

    fn explain(&mut self, field: &str, settled: &ResolvedValue) {
        if settled.changed() {
            self.explanation.set(field, settled);
        }
    }

    /// Suspends the Job in the queue of this scope.
    pub(crate) fn queue(&mut self, scope: &ScopeKey, now: Timestamp) {
        self.spec.insert("suspend".to_owned(), true.into());
        let since = whole_seconds(now).to_string();
        self.annotations.insert(keys::QUEUED_AT.to_owned(), since.into());
        let what =
            format_args!("{}a slot of limit \"{}\" of {}", queued_entry::WAITS, scope.limit, scope.policy);
        self.explanation.set(stamped_annotation::QUEUED, what);
    }
}

#[cfg(test)]
mod tests {
    use job_handler_shared::testing::policies::namespaced;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn patch(job: &JobSnapshot, spec: Value) -> RepairPatch {
        repair_patch(job, &[&namespaced("p", spec)], at(1000))
    }

    #[test]
    fn a_repair_sets_and_explains_what_the_webhook_would_have() {
        let job = JobSnapshot { backoff_limit: Some(6), ttl: Some(9), ..JobSnapshot::default() };
        let stamp = json!({"ttlSecondsAfterFinished": {"max": 5}, "activeDeadlineSeconds": {"default": 60},
            "backoffLimit": {"default": 0}, "labels": {"team": "x"}});
        let patch =
            super::tests::patch(&job, json!({"stamp": stamp, "results": {"harvestDeadlineSeconds": 100}}));
        assert_eq!(
            Value::Object(patch.spec),
            json!({"ttlSecondsAfterFinished": 100, "activeDeadlineSeconds": 60, "backoffLimit": 0})
        );
        assert_eq!(Value::Object(patch.annotations), json!({keys::TTL: "5"}));
        assert_eq!(Value::Object(patch.labels), json!({"team": "x"}));
        assert_eq!(
            patch.explanation.text(),
            "ttlSecondsAfterFinished: 9 -> 5 (maximum of JobPolicy ci/p); activeDeadlineSeconds: unset -> 60 (default \
             of JobPolicy ci/p); backoffLimit: 6 -> 0 (default of JobPolicy ci/p); label team: x on the Job (JobPolicy ci/p)"
        );
    }

    #[test]
    fn a_repair_never_ends_a_running_job() {
        let job = JobSnapshot {
            backoff_limit: Some(6),
            failed_pods: 2,
            started: Some(at(100)),
            ..JobSnapshot::default()
        };
        let stamp = json!({"activeDeadlineSeconds": {"max": 900}, "backoffLimit": {"default": 1}});
        let patch = super::tests::patch(&job, json!({"stamp": stamp}));
        assert!(patch.spec.is_empty(), "{:?}", patch.spec);
        assert!(
            patch.explanation.text().contains("900 s have passed already, the Job keeps running"),
            "{}",
            patch.explanation
        );
    }

    #[test]
    fn forged_labels_and_annotations_are_removed() {
        let mut job = JobSnapshot::default();
        job.labels.insert(keys::GROUP.into(), "forged".into());
        job.annotations.insert(keys::QUEUED_AT.into(), "2026-01-01T00:00:00Z".into());
        let patch = super::tests::patch(&job, json!({}));
        assert_eq!(Value::Object(patch.labels), json!({keys::GROUP: null}));
        assert_eq!(Value::Object(patch.annotations), json!({keys::QUEUED_AT: null}));
        assert!(patch.explanation.text().starts_with("nothing to set: selected by JobPolicy ci/p"));
    }
}
