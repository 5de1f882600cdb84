//! The scopes in which a Job takes a slot. The webhook admits by them, and the sink releases queued Jobs by them.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    job::{
        group::{GroupId, group_of},
        snapshot::JobSnapshot,
    },
    keys,
    policy::{
        limit::{Limit, Scope},
        parsed::Policy,
        reference::{Labels, PolicyRef},
    },
};

/// A limit, and the domain in which it counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopeKey {
    /// The limit's policy.
    pub policy: PolicyRef,
    /// The limit's name.
    pub limit: String,
    /// The domain.
    pub domain: ScopeDomain,
}

/// The domain in which a limit counts. The narrowest comes first, because it says most to the author of a Job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub enum ScopeDomain {
    /// A group of a namespace.
    Group(String, GroupId),
    /// A namespace.
    Namespace(String),
    /// The cluster.
    Cluster,
}

/// Returns the scopes in which a Job takes a slot, with their limits, narrowest first. `policies` are those that apply to
/// the Job, in order of precedence.
///
/// Follows the rules of [`crate::policy::effective::EffectivePolicy`] without building one, which would copy too much for
/// thousands of Jobs.
pub fn scopes<'a>(policies: &[&'a Arc<Policy>], job: &JobSnapshot) -> Vec<(ScopeKey, &'a Limit)> {
    if policies.iter().all(|policy| policy.spec.limits.is_empty()) {
        return Vec::new();
    }
    let group = group_of_job(policies, job);
    let mut scopes = Vec::new();
    for policy in policies {
        for limit in &policy.spec.limits {
            let domain = match limit.scope {
                Scope::Cluster => ScopeDomain::Cluster,
                Scope::Namespace => ScopeDomain::Namespace(job.namespace.clone()),
                Scope::Group => match &group {
                    Some(group) => ScopeDomain::Group(job.namespace.clone(), group.clone()),
                    None => continue,
                },
            };
            let policy = policy.reference.clone();
            scopes.push((ScopeKey { policy, limit: limit.name.clone(), domain }, limit));
        }
    }
    scopes.sort_by(|(a, _), (b, _)| a.domain.cmp(&b.domain));
    scopes
}

/// Returns the group of a Job under these policies, given in order of precedence.
pub fn group_of_job(policies: &[&Arc<Policy>], job: &JobSnapshot) -> Option<GroupId> {
    let spec = policies.iter().find_map(|policy| policy.spec.group.as_ref())?;
    group_of(spec, &without_group_label(&job.labels), job.owner.as_ref()).ok()
}

/// Labels without the stamped group, which is never an input: a forged one could select policies.
pub fn without_group_label(labels: &Labels) -> Cow<'_, Labels> {
    if labels.contains_key(keys::GROUP) {
        let rest = labels.iter().filter(|(key, _)| *key != keys::GROUP);
        Cow::Owned(rest.map(|(key, value)| (key.clone(), value.clone())).collect())
    } else {
        Cow::Borrowed(labels)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::policies::namespaced;

    #[test]
    fn limits_use_the_group_of_the_first_policy_and_never_the_stamped_label() {
        let first = namespaced("a", json!({"group": {"type": "Labels", "labelKeys": ["id"]}}));
        let limits = json!({"group": {"type": "Owner"}, "limits": [
            {"name": "all", "maxActiveJobs": 3}, {"name": "each", "maxActiveJobs": 1, "scope": "Group"}]});
        let second = namespaced("b", limits);
        let mut job = JobSnapshot { namespace: "ci".into(), ..JobSnapshot::default() };
        job.labels.insert(keys::GROUP.into(), "forged".into());
        let domains = |job: &JobSnapshot| {
            scopes(&[&first, &second], job).into_iter().map(|(key, _)| key.domain).collect::<Vec<_>>()
        };
        assert_eq!(domains(&job), [ScopeDomain::Namespace("ci".into())], "without the label it has no group");
        job.labels.insert("id".into(), "7".into());
        let group = GroupId { by: "labels:id".into(), value: "7".into() };
        assert_eq!(
            domains(&job),
            [ScopeDomain::Group("ci".into(), group), ScopeDomain::Namespace("ci".into())]
        );
    }
}
