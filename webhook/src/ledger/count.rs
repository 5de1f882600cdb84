//! Policies and Jobs in the ledger's terms.

use std::collections::BTreeMap;

use job_handler_shared::{
    job::snapshot::JobSnapshot,
    ledger::crd::{AttemptKind, CLUSTER_LEDGER},
    names,
    policy::{
        limit::Limit,
        reference::{Labels, PolicyKind},
        set::PolicySet,
    },
};

use crate::ledger::resolve::ObservedJob;
use crate::limit::scopes::{LimitRules, ScopeDomain, ScopeKey};

/// Which ledger.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LedgerId {
    /// Of limits that count over the cluster.
    Cluster,
    /// Of the limits within a namespace.
    Namespace(String),
}

impl LedgerId {
    /// Name of the object.
    pub fn name(&self) -> &str {
        match self {
            Self::Cluster => CLUSTER_LEDGER,
            Self::Namespace(namespace) => namespace,
        }
    }

    /// Of the object of this name.
    pub fn of_name(name: &str) -> Self {
        if name == CLUSTER_LEDGER { Self::Cluster } else { Self::Namespace(name.to_owned()) }
    }

    /// The namespace whose Jobs it is about; none = all.
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Cluster => None,
            Self::Namespace(namespace) => Some(namespace),
        }
    }

    fn holds(&self, place: &ScopeDomain) -> bool {
        (*self == Self::Cluster) == (*place == ScopeDomain::Cluster)
    }
}

/// Uids of the policies that may ever have granted in a ledger. One of its first generation has always said what it says;
/// later ones may have had limits before. Which namespaces a policy selects depends on labels that change.
pub fn could_grant<'a>(policies: &'a PolicySet, ledger: &LedgerId) -> impl Iterator<Item = &'a str> {
    let policies = policies.iter().filter(move |policy| {
        let near = policy.reference.namespace.as_deref().is_none_or(|own| ledger.namespace() == Some(own));
        near && (policy.has_limits() || policy.generation != 1)
    });
    policies.map(|policy| policy.reference.uid.as_str())
}

/// The scopes of a Job that this ledger decides about.
pub fn scopes<'a>(rules: LimitRules<'a>, ledger: &LedgerId, job: &JobSnapshot) -> Vec<(ScopeKey, &'a Limit)> {
    rules.scopes(job).into_iter().filter(|(scope, _)| ledger.holds(&scope.domain)).collect()
}

/// A scope, as it is written into its ledger ([`limit_of`](super::decide::limit_of) reads it again).
pub fn scope_id(scope: &ScopeKey) -> String {
    let limit = format!("{}/{}", scope.policy.uid, scope.limit);
    match &scope.domain {
        ScopeDomain::Cluster | ScopeDomain::Namespace(_) => limit,
        ScopeDomain::Group(_, group) => format!("{limit}/{}={}", group.by, group.value),
    }
}

/// A Job of a view.
pub fn seen(rules: LimitRules<'_>, ledger: &LedgerId, job: &JobSnapshot) -> ObservedJob {
    let active = job.is_active();
    // Only who is active is counted, and finding scopes costs.
    let scopes = if active { scopes(rules, ledger, job) } else { Vec::new() };
    ObservedJob {
        name: job.key(),
        uid: job.uid.clone(),
        version: version(job),
        active,
        scopes: scopes.iter().map(|(scope, _)| scope_id(scope)).collect(),
        since: job.created,
    }
}

/// resourceVersion of a Job. An unreadable one is never above any `from`: its attempts count until they run out.
pub fn version(job: &JobSnapshot) -> u64 {
    job.resource_version.parse().unwrap_or(0)
}

/// What a request tries.
pub fn kind(from: Option<&str>) -> AttemptKind {
    match from {
        None => AttemptKind::Create,
        // An unreadable one is never left behind; the largest number that the API stores as an integer.
        Some(from) => AttemptKind::Unsuspend { from: from.parse().unwrap_or(i64::MAX as u64) },
    }
}

/// By what Jobs of a namespace are counted in a ledger: two replicas of one revision find the same scopes for a Job.
pub fn revision(rules: LimitRules<'_>, ledger: &LedgerId, namespace: &str) -> String {
    let concerns = |kind: PolicyKind, own: Option<&str>| match kind {
        PolicyKind::ClusterJobPolicy => true,
        PolicyKind::JobPolicy => ledger.namespace().is_some() && own == Some(namespace),
    };
    let policies: BTreeMap<&str, i64> = rules
        .policies
        .iter()
        .filter(|policy| concerns(policy.reference.kind, policy.reference.namespace.as_deref()))
        .map(|policy| (policy.reference.uid.as_str(), policy.generation))
        .collect();
    let labels: std::sync::Arc<Labels> = (rules.namespaces)(namespace).unwrap_or_default();
    names::short_hash([format!("{policies:?}").as_str(), &format!("{labels:?}")])
}
