//! The rules of each field that a decision sets.

use jiff::Timestamp;
use job_handler_shared::{
    job::{
        queued_entry,
        snapshot::Outcome,
        stamped_annotation::{self, StampedAnnotation},
    },
    keys,
    policy::{
        cleanup::CleanupPolicy,
        effective::EffectivePolicy,
        limit::{Scope, WhenFull},
        range::{self, AbsentValue, ResolvedValue, ValueSource},
        reference::Labels,
    },
};

use crate::{
    job_view::JobView,
    stamp::{
        container_resources,
        decide::{FieldValue, StampDecision, is_harvested},
        select::{self, SelectedPolicies},
    },
};

/// The API's default of `backoffLimit`. It cannot be distinguished from an explicit 6.
const API_BACKOFF_LIMIT: i32 = 6;
/// A younger queue annotation may be our own, from an earlier call for the same create.
const SAME_CREATE_SECONDS: i64 = 60;

impl StampDecision {
    /// Sets the TTL. If a result is to be harvested, `spec` gets the harvest deadline, and an annotation keeps the desired
    /// TTL until the result is stored.
    pub(super) fn stamp_ttl(
        &mut self,
        job: &JobView,
        effective: &EffectivePolicy,
        claims: &StampedAnnotation,
        text: &mut StampedAnnotation,
    ) {
        let present = job.snapshot.ttl.map(i64::from);
        let settle = |stated| range::resolve(stated, &effective.ttl, AbsentValue::Exempt);
        let harvest = effective.results.as_ref().map(|results| i64::from(results.harvest_deadline_seconds));
        let parked = |desired: Option<i64>| match (desired, harvest) {
            (Some(seconds), Some(deadline)) if seconds >= 0 => Some(seconds.max(deadline)),
            (desired, _) => desired,
        };
        // The annotation is valid only if `spec` has exactly the TTL that belongs to it: then this is our own output, a
        // copy of a stored Job, or a Job that the sink stamped. Forging it gains nothing over stating that TTL.
        let deferred = job
            .annotation(keys::TTL)
            .and_then(|text| text.parse::<i32>().ok())
            .map(i64::from)
            .filter(|desired| harvest.is_some() && *desired >= 0 && parked(Some(*desired)) == present);
        let claimed = claims
            .original_value(stamped_annotation::TTL)
            .map(settle)
            .filter(|settled| parked(settled.value) == present)
            .filter(|settled| deferred.is_none_or(|desired| settled.value == Some(desired)));
        let settled = match claimed {
            Some(settled) => settled,
            None => self.warn(stamped_annotation::TTL, settle(deferred.or(present))),
        };
        let spec = parked(settled.value);
        let relocated = harvest.is_some() && settled.value.is_some_and(|seconds| seconds >= 0);
        self.ttl = FieldValue::Set(spec);
        self.annotations
            .insert(keys::TTL, settled.value.filter(|_| relocated).map(|seconds| seconds.to_string()));
        match spec.filter(|_| relocated) {
            Some(spec) => {
                text.set(
                    stamped_annotation::TTL,
                    format_args!("{settled} once the result is stored, {spec} until then"),
                );
            }
            None if settled.changed() => text.set(stamped_annotation::TTL, &settled),
            None => text.remove(stamped_annotation::TTL),
        }
    }

    pub(super) fn stamp_deadline(
        &mut self,
        job: &JobView,
        effective: &EffectivePolicy,
        claims: &StampedAnnotation,
        text: &mut StampedAnnotation,
    ) {
        let settle = |stated| range::resolve(stated, &effective.deadline, AbsentValue::Unlimited);
        let settled =
            self.settle_claimed(stamped_annotation::DEADLINE, claims, job.snapshot.deadline, settle, true);
        self.deadline = FieldValue::Set(settled.value);
        explain(text, stamped_annotation::DEADLINE, &settled);
    }

    /// Sets the backoff limit. 6 counts as absent, unless the annotation `job-handler/keep` lists the field.
    pub(super) fn stamp_backoff_limit(
        &mut self,
        job: &JobView,
        effective: &EffectivePolicy,
        claims: &StampedAnnotation,
        text: &mut StampedAnnotation,
    ) {
        let per_index = job.backoff_limit_per_index;
        if per_index && job.snapshot.backoff_limit == Some(i32::MAX) {
            return;
        }
        // With backoffLimitPerIndex the API's default is MaxInt32, so a 6 was set explicitly.
        let keeps = per_index
            || job.annotation(keys::KEEP).is_some_and(|fields| {
                fields.split(',').any(|field| field.trim() == stamped_annotation::BACKOFF)
            });
        let settle = |stated: Option<i64>| {
            let absent = stated.is_none() || (stated == Some(i64::from(API_BACKOFF_LIMIT)) && !keeps);
            match (&effective.backoff_limit.default, absent) {
                (Some(default), true) => ResolvedValue {
                    stated,
                    value: Some(default.value),
                    source: ValueSource::Default(default.policy.clone()),
                },
                _ => range::resolve(stated, &effective.backoff_limit, AbsentValue::Exempt),
            }
        };
        let present = job.snapshot.backoff_limit.map(i64::from);
        // The client did not write the API's default, so it gets no warning about it.
        let warn = keeps || job.snapshot.backoff_limit != Some(API_BACKOFF_LIMIT);
        let settled = self.settle_claimed(stamped_annotation::BACKOFF, claims, present, settle, warn);
        self.backoff_limit = FieldValue::Set(settled.value);
        explain(text, stamped_annotation::BACKOFF, &settled);
    }

    pub(super) fn stamp_labels(
        &mut self,
        labels: &Labels,
        pod_labels: &Labels,
        effective: &EffectivePolicy,
        text: &mut StampedAnnotation,
    ) {
        for (key, label) in &effective.labels {
            let (on_job, on_pods) = (!labels.contains_key(key), !pod_labels.contains_key(key));
            if on_job {
                self.labels.insert(key.clone(), Some(label.value.clone()));
            }
            if on_pods {
                self.pod_labels.insert(key.clone(), Some(label.value.clone()));
            }
            if on_job || on_pods {
                text.set_label(key, &label.value, on_job, on_pods, &label.policy);
            }
        }
    }

    /// Sets requests and limits of containers that have neither. Values from the author and from a policy could contradict
    /// each other, so they are never mixed in one container.
    pub(super) fn stamp_containers(
        &mut self,
        job: &JobView,
        effective: &EffectivePolicy,
        claims: &StampedAnnotation,
        text: &mut StampedAnnotation,
    ) {
        let Some(wanted) = &effective.container_resources else { return };
        let stamped = container_resources::stamp(&job.template.containers, &wanted.value);
        let ours: Vec<&str> = claims.claimed_containers().collect();
        let names: Vec<&str> = job
            .template
            .containers
            .iter()
            .filter(|container| {
                !container.has_amounts()
                    || (ours.contains(&&*container.name)
                        && container_resources::has_exactly(container, &wanted.value))
            })
            .map(|container| container.name.as_str())
            .collect();
        if !names.is_empty() {
            let what = container_resources::describe(&wanted.value);
            text.set(
                stamped_annotation::RESOURCES,
                format_args!("{} (default of {}: {what})", names.join(", "), wanted.policy),
            );
        }
        self.containers = stamped;
    }

    /// Sets or removes the group label. The author's value is never kept.
    pub(super) fn stamp_group(
        &mut self,
        job: &JobView,
        selected: &SelectedPolicies,
        text: &mut StampedAnnotation,
    ) {
        let group = select::group(&selected.effective, &selected.labels, job.snapshot.owner.as_ref());
        let value = match group {
            Some((Ok(group), policy)) => {
                text.set(
                    stamped_annotation::GROUP,
                    format_args!("{} (by {}, {policy})", group.value, group.by),
                );
                Some(group.value)
            }
            Some((Err(why), policy)) => {
                let why = why.to_string();
                let why = why.strip_prefix("no group: ").unwrap_or(&why);
                text.set(stamped_annotation::NO_GROUP, format_args!("{why} ({policy} asks for one)"));
                None
            }
            None => {
                let limits = selected.effective.limits.iter();
                if let Some(limit) = limits.clone().find(|limit| limit.value.scope == Scope::Group) {
                    let (name, policy) = (&limit.value.name, &limit.policy);
                    let what =
                        format_args!("limit \"{name}\" of {policy} counts groups, and no policy names one");
                    text.set(stamped_annotation::NO_GROUP, what);
                }
                None
            }
        };
        let found = job.snapshot.labels.get(keys::GROUP);
        if let Some(found) = found.filter(|found| Some(*found) != value.as_ref()) {
            self.warnings.push(format!(
                "job-handler: label {} is set by job-handler from the policies; `{found}` was {}",
                keys::GROUP,
                if value.is_some() { "replaced" } else { "removed" }
            ));
        }
        self.labels.insert(keys::GROUP.to_owned(), value.clone());
        self.pod_labels.insert(keys::GROUP.to_owned(), value);
    }

    /// Under a limit with `whenFull: Queue`, creates the Job suspended, with the annotation that lets the sink release it.
    pub(super) fn queue(
        &mut self,
        job: &JobView,
        selected: &SelectedPolicies,
        claims: &StampedAnnotation,
        now: Timestamp,
        text: &mut StampedAnnotation,
    ) {
        let marked = job.annotation(keys::QUEUED_AT);
        let by_us = claims.has(stamped_annotation::QUEUED) && marked.is_some();
        let suspended_by_author = job.snapshot.suspended && !by_us;
        let is_managed_by_others =
            job.snapshot.managed_by.is_some() || selected.labels.contains_key(keys::KUEUE_QUEUE);
        let reason = wait_reason(job, selected).filter(|_| !suspended_by_author && !is_managed_by_others);
        let Some(reason) = reason else {
            self.annotations.insert(keys::QUEUED_AT, None);
            return;
        };
        let since = marked
            .and_then(|text| text.parse::<Timestamp>().ok())
            .filter(|since| (0..=SAME_CREATE_SECONDS).contains(&(now.as_second() - since.as_second())))
            .unwrap_or(now);
        let since = Timestamp::from_second(since.as_second()).unwrap_or(now);
        self.suspend = true;
        self.annotations.insert(keys::QUEUED_AT, Some(since.to_string()));
        text.set(stamped_annotation::QUEUED, format_args!("{}{reason}", queued_entry::WAITS));
    }

    /// Removes annotations that would make the sink release the Job, because no policy queues it.
    pub(super) fn remove_queue_annotations(&mut self, job: &JobView) {
        if job.annotation(keys::QUEUED_AT).is_some() {
            self.annotations.insert(keys::QUEUED_AT, None);
        }
        if let Some(text) =
            job.annotation(keys::STAMPED).filter(|text| queued_entry::waits_for(text).is_some())
        {
            self.annotations.insert(keys::STAMPED, queued_entry::without_queued(text));
        }
    }

    /// Handles a TTL that changes after the harvest. The sink's own patch passes unchanged. Later changes are clamped to
    /// the maximum, and removed under cleanup policy `Never`; otherwise each re-apply of the manifest would undo it.
    pub(super) fn stamp_harvested_ttl(&mut self, new: &JobView, old: &JobView, effective: &EffectivePolicy) {
        if !is_harvested(old) {
            return;
        }
        let Some(ttl) = new.snapshot.ttl.map(i64::from) else { return };
        let outcome = old.snapshot.finished.as_ref().map(|finished| finished.outcome);
        let never = effective.cleanup.as_ref().zip(outcome).is_some_and(|(cleanup, outcome)| {
            let policy = match outcome {
                Outcome::Completed => cleanup.succeeded_policy,
                Outcome::Failed => cleanup.failed_policy,
            };
            policy == CleanupPolicy::Never
        });
        if never {
            self.ttl = FieldValue::Set(None);
            self.warnings.push(format!(
                "job-handler: this Job is kept (cleanup policy Never); {} {ttl} was left out",
                stamped_annotation::TTL
            ));
        } else {
            let settled = range::resolve(Some(ttl), &effective.ttl, AbsentValue::Exempt);
            let settled = self.warn(stamped_annotation::TTL, settled);
            self.ttl = FieldValue::Set(settled.value);
        }
    }

    /// Settles the author's value from the `stamped` annotation if that leads to the present value. Otherwise the
    /// annotation is not ours, and the present value is settled.
    fn settle_claimed(
        &mut self,
        field: &str,
        claims: &StampedAnnotation,
        present: Option<i64>,
        settle: impl Fn(Option<i64>) -> ResolvedValue,
        warn: bool,
    ) -> ResolvedValue {
        match claims.original_value(field).map(&settle).filter(|settled| settled.value == present) {
            Some(settled) => settled,
            None if warn => self.warn(field, settle(present)),
            None => settle(present),
        }
    }

    fn warn(&mut self, field: &str, settled: ResolvedValue) -> ResolvedValue {
        self.warnings.extend(settled.warning(field));
        settled
    }
}

/// What a new Job waits for: a slot of a limit, or its group's next attempt after failures. The release decides whether it
/// really has to wait.
fn wait_reason(job: &JobView, selected: &SelectedPolicies) -> Option<String> {
    let effective = &selected.effective;
    let limit = effective.limits.iter().find(|limit| limit.value.when_full == WhenFull::Queue);
    if let Some(limit) = limit {
        return Some(format!("a slot of limit \"{}\" of {}", limit.value.name, limit.policy));
    }
    let backoff = effective.failure_backoff.iter().find(|rule| rule.value.action == WhenFull::Queue)?;
    // Failure backoff only applies to Jobs with a group.
    select::group(effective, &selected.labels, job.snapshot.owner.as_ref())?.0.ok()?;
    Some(format!("its group's next try (failureBackoff of {})", backoff.policy))
}

fn explain(text: &mut StampedAnnotation, field: &str, settled: &ResolvedValue) {
    if settled.changed() {
        text.set(field, settled);
    } else {
        text.remove(field);
    }
}
