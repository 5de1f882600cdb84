//! Translates policies and Jobs into the ledger's terms: scopes, observed Jobs and policy revisions.

use std::{collections::BTreeMap, sync::Arc};

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    ledger::crd::AttemptKind,
    names,
    policy::{
        limit::Limit,
        reference::{Labels, PolicyKind},
        set::PolicySet,
    },
};

use crate::{
    ledger::{ledger_id::LedgerId, resolve::ObservedJob},
    limit::scopes::{LimitRules, ScopeDomain, ScopeKey},
};

/// Uids of the policies that may ever have granted an attempt in a ledger. A policy of generation 1 has never had other
/// limits than now; later generations may have. Which namespaces a policy selects depends on labels that change.
pub(crate) fn may_have_granted<'a>(
    policies: &'a PolicySet,
    ledger: &LedgerId,
) -> impl Iterator<Item = &'a str> {
    // The ledger of the cluster has no namespace: only the cluster's policies are in its reach.
    let in_reach = policies.of_namespace(ledger.namespace().unwrap_or_default());
    let granting = in_reach.filter(|policy| policy.has_limits() || policy.generation != 1);
    granting.map(|policy| policy.reference.uid.as_str())
}

/// The scopes of a Job that this ledger counts, with their limits.
pub(crate) fn scopes<'a>(
    rules: LimitRules<'a>,
    ledger: &LedgerId,
    job: &JobSnapshot,
) -> Vec<(ScopeKey, &'a Limit)> {
    let counts = |place: &ScopeDomain| (*ledger == LedgerId::Cluster) == (*place == ScopeDomain::Cluster);
    rules.scopes(job).into_iter().filter(|(scope, _)| counts(&scope.domain)).collect()
}

/// The id of a scope in its ledger; `limit_of` parses it.
pub(crate) fn scope_id(scope: &ScopeKey) -> String {
    let limit = format!("{}/{}", scope.policy.uid, scope.limit);
    match &scope.domain {
        ScopeDomain::Cluster | ScopeDomain::Namespace(_) => limit,
        ScopeDomain::Group(_, group) => format!("{limit}/{}={}", group.by, group.value),
    }
}

/// A Job with the scopes in which it takes a slot.
pub(crate) fn observe(rules: LimitRules<'_>, ledger: &LedgerId, job: &JobSnapshot) -> ObservedJob {
    let active = job.is_active();
    // Only active Jobs count, and finding scopes is expensive.
    let scopes = if active { scopes(rules, ledger, job) } else { Vec::new() };
    ObservedJob {
        name: job.key(),
        uid: job.uid.clone(),
        version: resource_version(job),
        active,
        scopes: scopes.iter().map(|(scope, _)| scope_id(scope)).collect(),
        since: job.created,
    }
}

/// A Job's resourceVersion; 0 if it is not a number, which is above no `from`, so that its attempts count until they
/// expire.
pub(crate) fn resource_version(job: &JobSnapshot) -> u64 {
    job.resource_version.parse().unwrap_or(0)
}

/// The kind of an attempt, given the stored Job's resourceVersion if it changes one.
pub(crate) fn attempt_kind(from: Option<&str>) -> AttemptKind {
    match from {
        None => AttemptKind::Create,
        // If it is not a number, no version ever passes it: the largest number that the API stores as an integer.
        Some(from) => AttemptKind::Unsuspend { from: from.parse().unwrap_or(i64::MAX as u64) },
    }
}

/// Identifies the policies and namespace labels by which the Jobs of a namespace are counted: replicas with the same
/// revision find the same scopes for a Job.
pub(crate) fn policy_revision(rules: LimitRules<'_>, ledger: &LedgerId, namespace: &str) -> String {
    let applies = |kind: PolicyKind, own: Option<&str>| match kind {
        PolicyKind::ClusterJobPolicy => true,
        PolicyKind::JobPolicy => ledger.namespace().is_some() && own == Some(namespace),
    };
    let policies: BTreeMap<&str, i64> = rules
        .policies
        .iter()
        .filter(|policy| applies(policy.reference.kind, policy.reference.namespace.as_deref()))
        .map(|policy| (policy.reference.uid.as_str(), policy.generation))
        .collect();
    let labels: Arc<Labels> = (rules.namespaces)(namespace).unwrap_or_default();
    hash_revision(&policies, &labels)
}

/// Hashes the number of policies, then the uid and generation of each, then the key and value of each label. The encoding
/// is fixed, since replicas of different versions compare their revisions.
fn hash_revision(policies: &BTreeMap<&str, i64>, labels: &Labels) -> String {
    let mut parts = vec![policies.len().to_string()];
    for (uid, generation) in policies {
        parts.extend([(*uid).to_owned(), generation.to_string()]);
    }
    for (key, value) in labels {
        parts.extend([key.clone(), value.clone()]);
    }
    names::short_hash(parts.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected value was computed independently: a change of the encoding makes replicas of two versions disagree.
    #[test]
    fn the_encoding_of_a_revision_is_fixed() {
        let labels = Labels::from([("team".to_owned(), "a".to_owned())]);
        assert_eq!(hash_revision(&BTreeMap::from([("u1", 1), ("u2", 7)]), &labels), "517ef8adf3");
    }

    #[test]
    fn a_policy_and_a_label_never_hash_alike() {
        let (no_labels, label) = (Labels::new(), Labels::from([("1".to_owned(), "2".to_owned())]));
        let (no_policies, policy) = (BTreeMap::new(), BTreeMap::from([("1", 2)]));
        assert_ne!(hash_revision(&policy, &no_labels), hash_revision(&no_policies, &label));
    }
}
