//! Which policies apply to a Job, and their combined settings.

use std::sync::Arc;

use job_handler_shared::{
    job::{
        group::{GroupId, NoGroup, group_of},
        scope::without_group_label,
        snapshot::Owner,
    },
    policy::{
        effective::{EffectivePolicy, FromPolicy},
        parsed::Policy,
        reference::{Labels, PolicyRef},
        set::PolicySet,
    },
};

/// The enforced policies that select a Job, and their combined settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct SelectedPolicies {
    /// The policies, in order of precedence.
    pub(crate) policies: Vec<Arc<Policy>>,
    /// Their combined settings.
    pub(crate) effective: Arc<EffectivePolicy>,
    /// The Job's labels, with those that policies add, without the stamped group.
    pub(crate) labels: Labels,
}

/// Selects policies by the Job's labels, and again with the labels that these policies add. Limits and the harvest see the
/// stored Job with the added labels, and must come to the same group, limits and results. A policy keeps applying even if
/// the labels that it adds no longer match its own selector (for example: selects on `team` absent, adds `team: unknown`).
pub(crate) fn for_stamping(
    set: &PolicySet,
    namespace: &str,
    namespace_labels: &Labels,
    raw: &Labels,
) -> SelectedPolicies {
    let mut labels = without_group_label(raw).into_owned();
    let mut policies = enforced(set, namespace, namespace_labels, &labels);
    let mut effective = set.effective(&policies, &labels);
    // Labels are only added, so this ends. A longer chain of policies is not a sensible configuration.
    for _ in 0..4 {
        let missing: Vec<(String, String)> = effective
            .labels
            .iter()
            .filter(|(key, _)| !labels.contains_key(*key))
            .map(|(key, FromPolicy { value, .. })| (key.clone(), value.clone()))
            .collect();
        if missing.is_empty() {
            break;
        }
        labels.extend(missing);
        let last = enforced(set, namespace, namespace_labels, &labels);
        let last_effective = set.effective(&last, &labels);
        // Usually the added labels select no other policies.
        if last.len() == policies.len() && last.iter().zip(&policies).all(|(a, b)| Arc::ptr_eq(a, b)) {
            effective = last_effective;
            continue;
        }
        policies.extend(last);
        policies.sort_by(|a, b| a.reference.cmp(&b.reference));
        policies.dedup_by(|a, b| a.reference == b.reference);
        let EffectivePolicy { ttl, deadline, backoff_limit, labels: stamped, .. } =
            EffectivePolicy::combine(policies.iter().copied(), &labels);
        let last_effective = EffectivePolicy::clone(&last_effective);
        effective =
            Arc::new(EffectivePolicy { ttl, deadline, backoff_limit, labels: stamped, ..last_effective });
    }
    SelectedPolicies { policies: policies.into_iter().cloned().collect(), effective, labels }
}

/// The enforced policies that select a Job with these labels.
pub(crate) fn enforced<'a>(
    set: &'a PolicySet,
    namespace: &str,
    namespace_labels: &Labels,
    labels: &Labels,
) -> Vec<&'a Arc<Policy>> {
    let mut matching = set.matching(namespace, namespace_labels, labels);
    matching.retain(|policy| policy.enforced());
    matching
}

/// The group of a Job, computed from its labels; none if no policy defines a group.
pub(crate) fn group(
    effective: &EffectivePolicy,
    labels: &Labels,
    owner: Option<&Owner>,
) -> Option<(Result<GroupId, NoGroup>, PolicyRef)> {
    let spec = effective.group.as_ref()?;
    Some((group_of(&spec.value, &without_group_label(labels), owner), spec.policy.clone()))
}
