//! The scopes in which a Job takes a slot, by the policies of the moment, and the holders of slots. Pure.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
pub use job_handler_shared::job::scope::{ScopeDomain, ScopeKey};
use job_handler_shared::{
    job::{scope, snapshot::JobSnapshot},
    policy::{limit::Limit, parsed::Policy, reference::Labels, set::PolicySet},
};

use crate::stamp::select::enforced;

/// A Job that holds a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotHolder {
    /// The Job's namespace.
    pub namespace: String,
    /// The Job's name.
    pub name: String,
    /// When the Job was created, or when its attempt was granted.
    pub since: Timestamp,
    /// By what it holds the slot.
    pub kind: HolderKind,
}

/// By what a slot is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolderKind {
    /// A Job that is active.
    Running,
    /// An attempt that was granted a moment ago, whose Job is not seen yet.
    JustAdmitted,
    /// An attempt whose Job should have been stored long ago: something denied it after job-handler.
    NeverStored {
        /// How long the Job can still be stored.
        free_within: Duration,
    },
    /// Pods that run on although their Job was deleted.
    OrphanedPods,
}

impl HolderKind {
    /// In metrics: the values of label `held_by`.
    pub(crate) const NAMES: [&'static str; 4] = ["running", "just_admitted", "never_stored", "orphaned_pods"];

    /// The position of its name.
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Running => 0,
            Self::JustAdmitted => 1,
            Self::NeverStored { .. } => 2,
            Self::OrphanedPods => 3,
        }
    }

    /// Whether nothing but an attempt holds the slot.
    pub(crate) fn is_attempt(self) -> bool {
        matches!(self, Self::JustAdmitted | Self::NeverStored { .. })
    }
}

/// The policies and namespaces of one moment, by which Jobs are counted.
#[derive(Clone, Copy)]
pub struct LimitRules<'a> {
    /// All policies.
    pub policies: &'a PolicySet,
    /// The labels of a namespace; `None` if it is unknown.
    pub namespaces: &'a (dyn Fn(&str) -> Option<Arc<Labels>> + Sync),
}

impl<'a> LimitRules<'a> {
    /// The scopes in which a Job takes a slot, with their limits; the most specific first.
    pub fn scopes(&self, job: &JobSnapshot) -> Vec<(ScopeKey, &'a Limit)> {
        scope::scopes(&self.matching(job), job)
    }

    /// The number of policies for each of which the apiserver asks about a create of this Job.
    pub(crate) fn deciding(&self, job: &JobSnapshot) -> usize {
        self.matching(job).iter().filter(|policy| policy.has_limits()).count()
    }

    /// The enforced policies that select a Job.
    pub fn matching(&self, job: &JobSnapshot) -> Vec<&'a Arc<Policy>> {
        let labels = (self.namespaces)(&job.namespace).unwrap_or_default();
        enforced(self.policies, &job.namespace, &labels, &scope::without_group_label(&job.labels))
    }
}
