//! Which policies act on a Job, and what they say together.

use std::sync::Arc;

use job_handler_shared::{
    job::{
        group::{GroupId, NoGroup, group_of},
        snapshot::{JobSnapshot, Owner},
    },
    policy::set::{Effective, From, Labels, Policy, PolicyRef, PolicySet},
};

pub use job_handler_shared::job::scope::without_group;

/// What the enforced policies say about one Job.
#[derive(Clone, Debug, Default)]
pub struct Selected {
    /// Those that select it, in order of precedence.
    pub by: Vec<Arc<Policy>>,
    /// What they say together.
    pub effective: Arc<Effective>,
    /// The Job's labels as decisions see them, with those that policies add, without the stamped group.
    pub labels: Labels,
}

/// What the enforced policies say about a Job with these labels, and about the Job as it becomes by the labels that they
/// add: whoever looks at the stored Job later (a limit, the harvest) sees those labels, and has to come to the same
/// group, limits and results. What a policy stamps stays, also where it no longer selects the Job that it has stamped
/// (`team` absent -> `team: unknown`).
pub fn for_stamping(set: &PolicySet, namespace: &str, namespace_labels: &Labels, raw: &Labels) -> Selected {
    let mut labels = without_group(raw).into_owned();
    let mut by = enforced(set, namespace, namespace_labels, &labels);
    let mut effective = set.combined(&by, &labels);
    // Labels only ever grow, so this ends; a chain longer than this is nobody's intention.
    for _ in 0..4 {
        let missing: Vec<(String, String)> = effective
            .labels
            .iter()
            .filter(|(key, _)| !labels.contains_key(*key))
            .map(|(key, From { value, .. })| (key.clone(), value.clone()))
            .collect();
        if missing.is_empty() {
            break;
        }
        labels.extend(missing);
        let last = enforced(set, namespace, namespace_labels, &labels);
        let last_effective = set.combined(&last, &labels);
        // As a rule the added labels choose no other policies.
        if last.len() == by.len() && last.iter().zip(&by).all(|(a, b)| Arc::ptr_eq(a, b)) {
            effective = last_effective;
            continue;
        }
        by.extend(last);
        by.sort_by(|a, b| a.reference.cmp(&b.reference));
        by.dedup_by(|a, b| a.reference == b.reference);
        let Effective { ttl, deadline, backoff_limit, labels: stamped, .. } =
            Effective::of(by.iter().copied(), &labels);
        let last_effective = Effective::clone(&last_effective);
        effective = Arc::new(Effective { ttl, deadline, backoff_limit, labels: stamped, ..last_effective });
    }
    Selected { by: by.into_iter().cloned().collect(), effective, labels }
}

/// The enforced policies that select a stored Job.
pub fn enforced<'a>(
    set: &'a PolicySet,
    namespace: &str,
    namespace_labels: &Labels,
    labels: &Labels,
) -> Vec<&'a Arc<Policy>> {
    let mut matching = set.matching(namespace, namespace_labels, labels);
    matching.retain(|policy| policy.enforced());
    matching
}

/// The group of a Job, from its raw labels; none where no policy asks for one.
pub fn group(
    effective: &Effective,
    labels: &Labels,
    owner: Option<&Owner>,
) -> Option<(Result<GroupId, NoGroup>, PolicyRef)> {
    let spec = effective.group.as_ref()?;
    Some((group_of(&spec.value, &without_group(labels), owner), spec.policy.clone()))
}

/// The group of a stored Job, or none.
pub fn group_of_stored(effective: &Effective, job: &JobSnapshot) -> Option<GroupId> {
    group(effective, &job.labels, job.owner.as_ref()).and_then(|(group, _)| group.ok())
}
