//! Slots: which scopes a Job takes one in by the policies of the moment, and who holds them. Pure.

use std::sync::Arc;

use jiff::Timestamp;
pub use job_handler_shared::job::scope::{ScopeDomain, ScopeKey};
use job_handler_shared::{
    job::{scope, snapshot::JobSnapshot},
    policy::{limit::Limit, parsed::Policy, reference::Labels, set::PolicySet},
};

use crate::stamp::select::enforced;

/// Whoever takes a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotHolder {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Since when; an attempt's: when it was granted.
    pub since: Timestamp,
    /// Granted, and not seen yet.
    pub pending: bool,
}

/// Policies and namespaces of one moment.
#[derive(Clone, Copy)]
pub struct LimitRules<'a> {
    /// All policies.
    pub policies: &'a PolicySet,
    /// Labels of namespaces.
    pub namespaces: &'a (dyn Fn(&str) -> Option<Arc<Labels>> + Sync),
}

impl<'a> LimitRules<'a> {
    /// The scopes in which a Job takes a slot, with their limits; the most telling first.
    pub fn scopes(&self, job: &JobSnapshot) -> Vec<(ScopeKey, &'a Limit)> {
        scope::scopes(&self.matching(job), job)
    }

    /// The enforced policies that select a Job.
    pub fn matching(&self, job: &JobSnapshot) -> Vec<&'a Arc<Policy>> {
        let labels = (self.namespaces)(&job.namespace).unwrap_or_default();
        enforced(self.policies, &job.namespace, &labels, &scope::without_group_label(&job.labels))
    }
}
